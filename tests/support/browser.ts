/**
 * A real browser for the tests: an installed one, one that is installed for
 * them, or the one that a package carries.
 *
 * @module
 */
import { type Browser, chromium } from "playwright-core";

const INSTALLED = [
  "chromium",
  "chromium-browser",
  "google-chrome",
  "google-chrome-stable",
];

/** The package that carries a browser; not in the import map, as only few machines need its 70 MB. */
const CARRIER = "npm:@sparticuz/chromium@153.0.0";

const HOW_TO_GET_ONE =
  "Install Chromium or Google Chrome so that `chromium` or `google-chrome` is on the PATH " +
  "(Debian: `apt-get install chromium`), or set BROWSER_TESTS=skip to go without these tests.";

/** Whether these tests are left out, which the runner's closing line then counts. */
export const isSkipped = Deno.env.get("BROWSER_TESTS") === "skip";

if (isSkipped) {
  Deno.stderr.writeSync(new TextEncoder().encode(
    "BROWSER_TESTS=skip: THE DASHBOARD IS NOT TESTED in a browser.\n",
  ));
}

/** Starts a browser. @throws {Error} that says how to get one. */
export async function startBrowser(): Promise<Browser & AsyncDisposable> {
  const browser = await chromium.launch({
    executablePath: await findBrowser(),
    // It opens our own pages only, and its sandbox is not to be had by root and
    // in many containers, which have a small /dev/shm as well.
    args: [
      "--no-sandbox",
      "--disable-dev-shm-usage",
      "--force-color-profile=srgb",
    ],
  });
  return Object.assign(browser, {
    [Symbol.asyncDispose]: () => browser.close(),
  });
}

/** Path of a browser. Test files run side by side, so one at a time looks and installs. */
async function findBrowser(): Promise<string> {
  const folder = Deno.env.get("TMPDIR") ?? "/tmp";
  using lock = await Deno.open(
    `${folder}/marketing-data-service-browser-${Deno.uid()}.lock`,
    { create: true, write: true },
  );
  await lock.lock(true);
  const failures: string[] = [];
  for (const way of [findInstalled, installByApt, unpackCarried]) {
    try {
      const path = await way();
      if (path) return path;
    } catch (error) {
      failures.push((error as Error).message);
    }
  }
  throw new Error(
    [`There is no browser to test with. ${HOW_TO_GET_ONE}`, ...failures]
      .join("\n"),
  );
}

async function findInstalled(): Promise<string | undefined> {
  for (const name of INSTALLED) {
    for (const folder of (Deno.env.get("PATH") ?? "").split(":")) {
      const path = `${folder}/${name}`;
      const isThere = await Deno.stat(path).then((f) => f.isFile, () => false);
      if (folder && isThere) return path;
    }
  }
}

async function installByApt(): Promise<string | undefined> {
  if (Deno.build.os !== "linux" || Deno.uid() !== 0) return undefined;
  await run("apt-get", ["update"]);
  await run("apt-get", [
    "install",
    "-y",
    "--no-install-recommends",
    "chromium",
  ]);
  return await findInstalled();
}

/** In a process of its own, with no lock file: the project's does not know the package. */
async function unpackCarried(): Promise<string> {
  const script = `const { default: chromium } = await import(${
    JSON.stringify(CARRIER)
  });
     console.log(await chromium.executablePath());`;
  const output = await run(Deno.execPath(), [
    "run",
    "--no-config",
    "--no-lock",
    "--allow-all",
    `data:text/javascript,${encodeURIComponent(script)}`,
  ]);
  return output.trim().split("\n").at(-1)!;
}

async function run(command: string, args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(command, {
    args,
    env: { DEBIAN_FRONTEND: "noninteractive" },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  if (success) return decoder.decode(stdout);
  const lines = decoder.decode(stderr).trim().split("\n");
  throw new Error(
    `${command} ${args.slice(0, 2).join(" ")} failed: ${
      lines.slice(-3).join(" ")
    }`,
  );
}
