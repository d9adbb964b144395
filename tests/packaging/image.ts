/**
 * Builds both targets of the last commit's Dockerfile with buildah, on base images that are made
 * from debootstrap and Deno. `deno task test:image` runs this file. It needs root.
 *
 * `DEBIAN_ROOT` names a folder that debootstrap has made. Without `DENORT_BIN`,
 * Deno is in place of denort: the program is then built, but does not run.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { findProgram } from "../support/debian.ts";
import { ROOT } from "../support/documents.ts";

const PROGRAM = "/usr/local/bin/marketing-data-service";

if (
  Deno.uid() !== 0 || !findProgram("buildah") || !findProgram("debootstrap")
) {
  throw new Error(
    "Cannot build the image: run as root, and install the Debian packages buildah and debootstrap.",
  );
}

async function run(command: string, args: string[], env = {}) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd: ROOT,
    env,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  const text = decoder.decode(stdout);
  assertEquals(
    code,
    0,
    `${command} ${args.join(" ")}\n${text}${decoder.decode(stderr)}`,
  );
  return text.trim();
}

Deno.test("buildah builds the image from the sources and from dist/", async (t) => {
  await using stack = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir({ dir: "/var/tmp" });
  stack.defer(async () => {
    await run("rm", ["-rf", folder]);
  });
  const buildah = (...args: string[]) =>
    run("buildah", [
      `--root=${folder}/store`,
      `--runroot=${folder}/run`,
      "--storage-driver=vfs",
      ...args,
    ], { BUILDAH_ISOLATION: "chroot", TMPDIR: folder });

  const debian = Deno.env.get("DEBIAN_ROOT") ?? `${folder}/debian`;
  if (debian.startsWith(folder)) {
    await run("debootstrap", ["--variant=minbase", "bookworm", debian]);
  }
  const base = await buildah("from", "scratch");
  await run("tar", ["-C", debian, "-cf", `${folder}/debian.tar`, "."]);
  await buildah("add", base, `${folder}/debian.tar`, "/");
  await buildah("add", base, Deno.execPath(), "/usr/bin/deno");
  await buildah("commit", base, "base");

  const context = `${folder}/context`;
  await run("git", ["clone", "--quiet", ROOT.pathname, context]);
  await Deno.mkdir(`${folder}/denort`);
  await Deno.copyFile(
    Deno.env.get("DENORT_BIN") ?? Deno.execPath(),
    `${folder}/denort/denort`,
  );
  const build = (...args: string[]) =>
    buildah(
      "build",
      "--build-arg=BUILD_IMAGE=localhost/base",
      "--build-arg=RUNTIME_IMAGE=localhost/base",
      ...args,
      context,
    );
  const inspect = async (image: string) =>
    JSON.parse(await buildah("inspect", "--type=image", image)).Docker;
  const mount = async (image: string) =>
    await buildah("mount", await buildah("from", image));

  await t.step("the default target, with a private authority", async () => {
    const authority = Deno.env.get("SSL_CERT_FILE") ??
      "/etc/ssl/certs/ca-certificates.crt";
    await build(
      "--tag=compiled",
      "--format=docker",
      `--build-context=denort=${folder}/denort`,
      `--secret=id=ca,src=${authority}`,
    );
    const { config } = await inspect("compiled");
    const { version } = JSON.parse(
      await Deno.readTextFile(`${context}/deno.json`),
    );
    assertEquals(config.Labels["org.opencontainers.image.version"], version);
    assertEquals(config.User, "65532:65532");
    assertEquals(config.Entrypoint, [PROGRAM]);
    assertEquals(config.Healthcheck.Test, ["CMD", PROGRAM, "health", "--live"]);
    const root = await mount("compiled");
    const { size, mode } = await Deno.stat(`${root}${PROGRAM}`);
    assert(size > 50_000_000 && mode! & 0o001);
    const { uid } = await Deno.stat(`${root}/var/lib/marketing-data-service`);
    assertEquals(uid, 65532);
  });

  await t.step(
    "the build downloads only the packages of deno.lock",
    async () => {
      const packages = (await run("find", [
        folder,
        "-path",
        "*/npm/registry.npmjs.org/*",
        "-name",
        "package.json",
        "-not",
        "-path",
        "*/store/*",
      ])).split("\n").map((path) =>
        /registry\.npmjs\.org\/((?:@[^/]+\/)?[^/]+)\//.exec(path)![1]!
      );
      const { npm } = JSON.parse(
        await Deno.readTextFile(`${context}/deno.lock`),
      );
      const locked = new Set(
        Object.keys(npm).map((name) => name.replace(/(?<=.)@.*/, "")),
      );
      assert(packages.length > 0);
      assertEquals(packages.filter((name) => !locked.has(name)), []);
    },
  );

  await t.step("the target prebuilt, which runs dist/ as it is", async () => {
    await Deno.mkdir(`${context}/dist`);
    await Deno.writeTextFile(
      `${context}/dist/marketing-data-service`,
      '#!/bin/sh\nset -e\ntouch events.jsonl\necho "$(id -u) $(pwd) $HOST $*"\n',
    );
    await build("--tag=prebuilt", "--target=prebuilt");
    const container = await buildah("from", "prebuilt");
    assertEquals(
      await buildah("run", container, "--", PROGRAM, "serve"),
      "65532 /var/lib/marketing-data-service 0.0.0.0 serve",
    );
  });
});
