/**
 * A browser for the tests: an installed one, or the one in a package.
 *
 * @module
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, chromium } from "playwright-core";

const INSTALLED = [
  "chromium",
  "chromium-browser",
  "google-chrome",
  "google-chrome-stable",
];

/** The package with a browser. It is not in the import map, because few machines need its 70 MB. */
const CARRIER = "npm:@sparticuz/chromium@153.0.0";

/** Path of the browser for the tests, or `undefined` without one. */
const PATH = Deno.env.get("BROWSER_TESTS") === "skip"
  ? undefined
  : await findBrowser();

/**
 * Registers a test that needs a browser. Without one, the test is skipped, and its
 * name contains the remedy.
 */
export function browserTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
): void {
  Deno.test({
    name: PATH ? name : `SKIPPED, install the Debian package chromium: ${name}`,
    ignore: PATH === undefined,
    fn,
  });
}

/** Starts a browser. */
export async function startBrowser(): Promise<Browser & AsyncDisposable> {
  const browser = await chromium.launch({
    executablePath: PATH!,
    // The browser opens only pages of the service. Its sandbox does not work for root
    // and in many containers, which also have a small /dev/shm.
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

/** Returns the path of a browser. */
async function findBrowser(): Promise<string | undefined> {
  const folders = (Deno.env.get("PATH") ?? "").split(":").filter(Boolean);
  const paths = INSTALLED.flatMap((name) =>
    folders.map((folder) => `${folder}/${name}`)
  );
  return paths.find((path) => existsSync(path)) ?? await unpackCarried();
}

/**
 * Unpacks the browser in a process without a lock file, because the lock file of the
 * project does not list the package.
 */
async function unpackCarried(): Promise<string | undefined> {
  // Test files run in parallel, but only one may unpack at a time.
  using lock = await Deno.open(
    join(tmpdir(), `marketing-data-service-browser-${Deno.uid()}.lock`),
    { create: true, write: true },
  );
  await lock.lock(true);
  const script = `const { default: chromium } = await import(${
    JSON.stringify(CARRIER)
  });
     console.log(await chromium.executablePath());`;
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--no-config",
      "--no-lock",
      "--allow-all",
      `data:text/javascript,${encodeURIComponent(script)}`,
    ],
    stdin: "null",
  }).output();
  if (!success) {
    Deno.stderr.writeSync(stderr);
    return undefined;
  }
  const path = new TextDecoder().decode(stdout).trim().split("\n").at(-1)!;
  return await canStart(path) ? path : undefined;
}

/** Returns whether the system has the libraries that the browser needs. */
async function canStart(path: string): Promise<boolean> {
  const { success } = await new Deno.Command(path, {
    args: ["--version"],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).output();
  return success;
}
