/**
 * Runs the blocks of docs/operations.md, "A host", unchanged on a clean Debian,
 * with its systemd and its cron. `deno task test:host` runs this file. It needs
 * root, `debootstrap` and `systemd-nspawn`.
 *
 * Without `MARKETING_DATA_SERVICE_BIN`, a script in place of the compiled program
 * runs the sources. `DEBIAN_ROOT` names a folder that debootstrap has made.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases, PASSWORD } from "../support/databases.ts";
import { findProgram } from "../support/debian.ts";
import { ROOT } from "../support/documents.ts";
import { findFreePort, until } from "../support/server.ts";

const ETC = "/etc/marketing-data-service";
const STATE = "/var/lib/marketing-data-service";
const PROJECT = "/root/project";

async function run(command: string, args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, said: decoder.decode(stdout) + decoder.decode(stderr) };
}

async function runOrThrow(command: string, args: string[]): Promise<string> {
  const { code, said } = await run(command, args);
  assertEquals(code, 0, `${command} ${args.join(" ")}\n${said}`);
  return said.trim();
}

/** Returns the shell blocks of a section of docs/operations.md. */
function blocksOf(section: string): string[] {
  const page = Deno.readTextFileSync(new URL("docs/operations.md", ROOT));
  const [, text] = new RegExp(`^### ${section}\\n([^]*?)^##`, "m").exec(page)!;
  return [...text!.matchAll(/^```sh\n([^]*?)^```$/gm)].map(([, body]) => body!);
}

interface Host extends AsyncDisposable {
  readonly root: string;
  /** Pastes commands into a shell of root, in the project's folder. */
  readonly paste: (commands: string) => Promise<string>;
}

/** Makes a clean Debian with the project's files, and boots it. */
async function bootHost(): Promise<Host> {
  await using stack = new AsyncDisposableStack();
  const root = await Deno.makeTempDir({ dir: "/var/tmp" });
  stack.defer(async () => {
    await runOrThrow("rm", ["-rf", root]);
  });
  await Deno.chmod(root, 0o755);
  const made = Deno.env.get("DEBIAN_ROOT");
  await (made ? runOrThrow("cp", ["-a", `${made}/.`, root]) : runOrThrow(
    "debootstrap",
    ["--variant=minbase", "--include=systemd-sysv,dbus,cron", "bookworm", root],
  ));
  const project = `${root}${PROJECT}`;
  await Deno.mkdir(`${project}/dist`, { recursive: true });
  for (const path of ["deploy", "cli.ts", "deno.json", "deno.lock", "src"]) {
    await runOrThrow("cp", ["-R", new URL(path, ROOT).pathname, project]);
  }
  const program = `${project}/dist/marketing-data-service`;
  const compiled = Deno.env.get("MARKETING_DATA_SERVICE_BIN");
  if (compiled) await Deno.copyFile(compiled, program);
  else {
    await runOrThrow("cp", ["-R", project, `${root}/opt/project`]);
    await runOrThrow("cp", [Deno.execPath(), `${root}/opt/deno`]);
    const env = { DENO_DIR: `${root}/opt/cache` };
    const { success } = await new Deno.Command(Deno.execPath(), {
      args: ["cache", "--quiet", "cli.ts"],
      cwd: `${root}/opt/project`,
      env,
    }).output();
    assert(success);
    await runOrThrow("chmod", ["-R", "a+rX", `${root}/opt`]);
    await Deno.writeTextFile(
      program,
      `#!/bin/sh
DENO_DIR=/opt/cache exec /opt/deno run --quiet --no-prompt --cached-only -P /opt/project/cli.ts "$@"
`,
    );
  }
  const nspawn = new Deno.Command("systemd-nspawn", {
    args: [
      "--quiet",
      "--boot",
      "--register=no",
      "--keep-unit",
      `--directory=${root}`,
    ],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  stack.defer(async () => {
    nspawn.kill("SIGTERM");
    await nspawn.status;
  });
  let leader = "";
  const enter = (command: string) =>
    run("nsenter", [
      `--target=${leader}`,
      "--mount",
      "--uts",
      "--ipc",
      "--pid",
      "--root",
      "/usr/bin/env",
      "-i",
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "EDITOR=/root/editor",
      "bash",
      "-c",
      `cd ${PROJECT}\n${command}`,
    ]);
  await until("Debian has booted", async () => {
    leader = (await Deno.readTextFile(
      `/proc/${nspawn.pid}/task/${nspawn.pid}/children`,
    )).trim().split(" ").at(-1)!;
    if (!leader) return false;
    return (await enter("systemctl is-system-running")).said.trim() ===
      "running";
  });
  const moved = stack.move();
  return {
    root,
    paste: async (commands) => {
      const { code, said } = await enter(commands);
      assertEquals(code, 0, `${commands}\n${said}`);
      return said.trim();
    },
    [Symbol.asyncDispose]: () => moved.disposeAsync(),
  };
}

const needed = ["debootstrap", "systemd-nspawn", "nsenter"]
  .filter((name) => !findProgram(name));
if (Deno.uid() !== 0 || needed.length > 0) {
  throw new Error(
    "Cannot test on a clean Debian: run as root, and install the Debian packages debootstrap and systemd-container.",
  );
}

Deno.test("docs/operations.md installs service, timer and cron on a clean Debian", async (t) => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 9 } });
  await using host = await bootHost();
  const { root, paste } = host;
  /** A step needs the one before it. */
  const step = async (name: string, work: () => Promise<void>) => {
    assert(await t.step(name, work), name);
  };
  const [install, configure, units, service, timer, cron, ...others] = blocksOf(
    "A host",
  );
  assertEquals(others, []);
  const port = findFreePort();
  const { environment: env } = db;
  const settings = Object.entries(env)
    .filter(([name]) => /_(HOST|PORT|USER|NAME)$/.test(name))
    .map(([name, value]) => `${name}=${value}`);
  // The last assignment counts. Blanks and quotes check the common syntax.
  await Deno.writeTextFile(
    `${root}/root/settings`,
    [
      ...settings,
      `PORT="${port}"`,
      "OLIST_DB_SSLMODE=prefer",
      "DWH_DB_SSLMODE='prefer'  ",
      "EVENT_PUBLISHER_TYPE=file",
    ].join("\n"),
  );
  await Deno.writeTextFile(`${root}/root/password`, PASSWORD);
  await Deno.writeTextFile(
    `${root}/root/editor`,
    `#!/bin/sh
for file; do case $file in
  *_password) cat /root/password > "$file" ;;
  *) cat /root/settings >> "$file" ;;
esac; done
`,
    { mode: 0o755 },
  );
  const url = `http://127.0.0.1:${port}`;
  /** Waits until the file has a number of events, and returns the last one. */
  const lastEvent = async (count: number, seconds?: number) => {
    let lines: string[] = [];
    await until(`${count} events`, async () => {
      const text = await Deno.readTextFile(`${root}${STATE}/events.jsonl`);
      lines = text.split("\n").slice(0, -1);
      return lines.length >= count;
    }, seconds);
    const { status, trigger } = JSON.parse(lines.at(-1)!);
    assertEquals([lines.length, status], [count, "success"]);
    return trigger;
  };
  const load = async () => {
    const token = await Deno.readTextFile(`${root}${ETC}/api_token`);
    const response = await fetch(`${url}/load`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}` },
    });
    assertEquals(response.status, 200, await response.text());
  };
  const state = (unit: string) =>
    paste(`systemctl show --property=ActiveState --value ${unit}`);

  await step("install and check", async () => {
    await paste(install!);
    assertStringIncludes(await paste(configure!), "✓ dwh");
    await paste(units!);
  });
  await step("the service", async () => {
    await paste(service!);
    await until("the service is ready", async () => {
      const answer = await fetch(`${url}/health/ready`).catch(() => undefined);
      await answer?.body?.cancel();
      return answer?.ok ?? false;
    });
    await load();
    assertEquals(await lastEvent(1), "http");
  });
  await step("the timer, while the service runs", async () => {
    await paste(timer!);
    assertEquals(await state("marketing-data-load.timer"), "active");
    await paste("systemctl start marketing-data-load.service");
    assertEquals(await lastEvent(2), "cli");
    await load();
    assertEquals(await lastEvent(3), "http");
  });
  await step(
    "a stopped load and a stopped service have not failed",
    async () => {
      await using blocker = db.connect("source");
      await blocker.unsafe("begin; lock table marketing.closed_deals");
      await paste("systemctl start --no-block marketing-data-load.service");
      await until("the load waits", async () => {
        const [row] = await db.source.unsafe(
          "select count(*)::int as locks from pg_locks where not granted",
        );
        return row!.locks > 0;
      });
      await paste("systemctl stop marketing-data-load.service");
      await blocker.unsafe("rollback");
      assertEquals(await state("marketing-data-load.service"), "inactive");
      await paste(
        "systemctl disable --now marketing-data-load.timer marketing-data-service.service",
      );
      assertEquals(await state("marketing-data-service.service"), "inactive");
      assertEquals(await paste("systemctl --failed --plain --no-legend"), "");
    },
  );
  await step("cron", async () => {
    await paste(cron!);
    // Each minute, in place of each quarter of an hour.
    await paste("sed -i 's|^[*]/15|*|' /etc/cron.d/marketing-data-service");
    assertEquals(await lastEvent(5, 150), "cli");
  });
});
