/**
 * A real browser for the tests: an installed one, or the one that a package
 * carries.
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

/** The package that carries a browser; not in the import map, as only few machines need its 70 MB. */
const CARRIER = "npm:@sparticuz/chromium@153.0.0";

/** Path of the browser that the tests use, or `undefined` where there is none. */
const PATH = Deno.env.get("BROWSER_TESTS") === "skip"
  ? undefined
  : await findBrowser();

/**
 * Registers a test that needs a browser. Where there is none, the test is
 * skipped, and its name says how to get one.
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

/** Returns the path of a browser. */
async function findBrowser(): Promise<string | undefined> {
  const folders = (Deno.env.get("PATH") ?? "").split(":").filter(Boolean);
  const paths = INSTALLED.flatMap((name) =>
    folders.map((folder) => `${folder}/${name}`)
  );
  return paths.find((path) => existsSync(path)) ?? await unpackCarried();
}

/** Unpacks the carried browser in a process with no lock file: the project's does not list the package. */
async function unpackCarried(): Promise<string | undefined> {
  // Test files run side by side, and one at a time unpacks.
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
  if (success) {
    return new TextDecoder().decode(stdout).trim().split("\n").at(-1);
  }
  Deno.stderr.writeSync(stderr);
  return undefined;
}
