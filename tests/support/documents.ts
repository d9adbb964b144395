/**
 * Runs the commands that the documents show.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { findFreePort, until } from "./server.ts";

/** The project's folder. */
export const ROOT = new URL("../../", import.meta.url);

/** A shell line or an SQL block of a document. */
export interface Step {
  readonly language: "sh" | "sql";
  readonly text: string;
}

/** Returns the shell lines and SQL blocks of a document's text, in order. */
export function stepsOf(text: string): Step[] {
  const blocks = text.matchAll(/^( *)```(sh|sql)\n([^]*?)^ *```$/gm);
  return [...blocks].flatMap(([, indent, language, body]): Step[] => {
    const text = body!.trimEnd().split("\n")
      .map((line) => line.slice(indent!.length)).join("\n");
    return language === "sh"
      ? text.replaceAll(/\\\n */g, "").split("\n")
        .map((text) => ({ language, text }))
      : [{ language: "sql", text }];
  });
}

/** Runs a command in the project's folder. */
export async function runShell(
  command: string,
  env: Readonly<Record<string, string>>,
) {
  const { code, stdout, stderr } = await new Deno.Command("sh", {
    args: ["-c", command],
    cwd: ROOT,
    env,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    said: decoder.decode(stdout) + decoder.decode(stderr),
  };
}

/** Runs a service until it is ready, then sends SIGTERM. */
export async function serveForAMoment(
  command: string,
  env: Readonly<Record<string, string>>,
) {
  const port = findFreePort();
  const process = new Deno.Command("sh", {
    args: ["-c", `exec env ${command}`],
    cwd: ROOT,
    env: { ...env, PORT: String(port) },
    stdout: "null",
    stderr: "null",
  }).spawn();
  await until("the service is ready", async () => {
    try {
      const ready = await fetch(`http://127.0.0.1:${port}/health/ready`);
      await ready.body?.cancel();
      return ready.ok;
    } catch {
      return false;
    }
  });
  process.kill("SIGTERM");
  assertEquals((await process.status).code, 143);
}
