/**
 * The npm packages that the program contains, from `deno.lock` and Deno's cache.
 *
 * @module
 */

const ROOT = new URL("../", import.meta.url);

/** A package of the program. */
export interface Package {
  readonly name: string;
  readonly version: string;
  /** SHA-512 of the archive, in base64 after `sha512-`. */
  readonly integrity: string;
  /** The dependencies, as `name@version`. */
  readonly dependencies: readonly string[];
}

interface LockedPackage {
  readonly integrity: string;
  readonly dependencies?: readonly string[];
}

/** Returns the packages of `deno.lock`, in the order of their names. */
export function lockedPackages(): Package[] {
  const { npm }: { npm: Record<string, LockedPackage> } = JSON.parse(
    Deno.readTextFileSync(new URL("deno.lock", ROOT)),
  );
  /** Removes the versions of peer dependencies: `a@1_b@2` is `a@1`. */
  const idOf = (key: string) => key.replace(/_.*/, "");
  const ids = new Map(
    Object.keys(npm).map(idOf).map((id) => [id.replace(/(?<=.)@.*/, ""), id]),
  );
  return Object.entries(npm).map(([key, { integrity, dependencies = [] }]) => {
    const [, name, version] = /^(.+)@(.+)$/.exec(idOf(key))!;
    return {
      name: name!,
      version: version!,
      integrity,
      // A dependency without a version is the only one of its name.
      dependencies: dependencies.map((d) => ids.get(d) ?? idOf(d)),
    };
  });
}

/** Returns the license of a package as an SPDX identifier, and its text, from Deno's cache. */
export function licenseOf(
  { name, version }: Package,
): { id: string; text: string | undefined; author: string } {
  const folder = `${npmCache()}/registry.npmjs.org/${name}/${version}`;
  const { license, author } = JSON.parse(
    Deno.readTextFileSync(`${folder}/package.json`),
  );
  const file = [...Deno.readDirSync(folder)].map((entry) => entry.name)
    .find((name) => /^licen[cs]e/i.test(name));
  return {
    id: license,
    text: file && Deno.readTextFileSync(`${folder}/${file}`),
    author: author?.name ?? author ?? `the authors of ${name}`,
  };
}

let cache: string | undefined;

function npmCache(): string {
  cache ??= JSON.parse(
    new TextDecoder().decode(
      new Deno.Command(Deno.execPath(), { args: ["info", "--json"] })
        .outputSync().stdout,
    ),
  ).npmCache as string;
  return cache;
}
