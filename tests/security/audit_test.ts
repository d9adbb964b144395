import { assertEquals, assertStringIncludes } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);

/** Runs the audit against a registry with this answer. */
async function audit(answer: () => Response) {
  await using registry = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    answer,
  );
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    // The task would fetch the packages from this registry, so the script runs directly.
    args: [
      "run",
      "--no-prompt",
      "--no-config",
      "--allow-run",
      "--allow-read",
      ".ci/audit.ts",
    ],
    cwd: ROOT,
    env: { NPM_CONFIG_REGISTRY: `http://127.0.0.1:${registry.addr.port}/` },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

Deno.test("the audit passes without findings", async () => {
  const { code, stderr } = await audit(() => Response.json({}));
  assertEquals(code, 0, stderr);
  assertEquals(stderr.includes("NOT AUDITED"), false);
});

Deno.test("the audit fails on findings", async () => {
  const { code, stdout } = await audit(() =>
    Response.json({
      hono: [{
        id: 1,
        url: "https://advisories.example/1",
        title: "A finding",
        severity: "high",
        vulnerable_versions: "<999",
        cwe: [],
        cvss: { score: 9, vectorString: null },
      }],
    })
  );
  assertEquals(code, 1);
  assertStringIncludes(stdout, "A finding");
});

Deno.test("the audit prints a warning when the registry is unreachable", async () => {
  for (
    const answer of [
      () => new Response("no", { status: 405 }),
      () => new Response("down", { status: 503 }),
    ]
  ) {
    const { code, stderr } = await audit(answer);
    assertEquals(code, 0, stderr);
    assertStringIncludes(stderr, "NOT AUDITED");
  }
});
