/**
 * Writes a file of declared tables for a test.
 *
 * @module
 */

/** A file that TABLES_FILE names. Disposing removes it. */
export interface TablesFile extends AsyncDisposable {
  readonly path: string;
  /** The variable that names the file. */
  readonly variables: { readonly TABLES_FILE: string };
}

/** Writes the text into a new file. */
export async function writeTablesFile(text: string): Promise<TablesFile> {
  const path = await Deno.makeTempFile({ suffix: ".yaml" });
  await Deno.writeTextFile(path, text);
  return {
    path,
    variables: { TABLES_FILE: path },
    [Symbol.asyncDispose]: () => Deno.remove(path),
  };
}
