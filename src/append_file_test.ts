import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import {
  appendLine,
  checkWritable,
  isSameFile,
  type TornLine,
  withFile,
} from "./append_file.ts";
import { ServiceError } from "./errors.ts";

const EVENT_FILE = { label: "event file", variable: "EVENT_FILE" };
/** A user other than the one who runs the tests. */
const OTHER_USER = 65534;
const isRoot = Deno.uid() === 0;
const text = Deno.readTextFileSync;

function append(path: string, line: string, torn: TornLine = "cut") {
  return appendLine({ path, ...EVENT_FILE }, line, torn);
}

async function inFolder(
  work: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await work(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Returns the reason and the remedy of a refusal. */
async function refused(path: string): Promise<string> {
  const error = await assertRejects(() => append(path, "{}"), ServiceError);
  assertEquals(error.code, "event_file_unwritable");
  assertStringIncludes(
    error.message,
    `Cannot write to the event file ${path}: `,
  );
  assertStringIncludes(error.remedy, "EVENT_FILE");
  return error.line;
}

Deno.test("appendLine() cuts a torn last line of any length, and ends every other one", () =>
  inFolder(async (folder) => {
    const file = `${folder}/events.jsonl`;
    const cases: [before: string, kept: string, torn?: TornLine][] = [
      ['{"a":1}\n', '{"a":1}\n'],
      ['{"a":1}\n{"torn": "', '{"a":1}\n'],
      [`{"a":1}\n{"torn": "${"é".repeat(10_000)}`, '{"a":1}\n'],
      ['{"a":1}', '{"a":1}\n'],
      ["my notes", "my notes\n"],
      ['{"torn', '{"torn\n', "keep"],
    ];
    for (const [before, kept, torn] of cases) {
      await Deno.writeTextFile(file, before);
      await append(file, '{"b":  2}', torn);
      assertEquals(text(file), `${kept}{"b":  2}\n`);
    }
  }));

Deno.test("appendLine() creates a file for its owner only and keeps the mode of an existing file", () =>
  inFolder(async (folder) => {
    await append(`${folder}/new`, "{}");
    assertEquals(Deno.statSync(`${folder}/new`).mode! & 0o777, 0o600);
    await Deno.writeTextFile(`${folder}/old`, "");
    await Deno.chmod(`${folder}/old`, 0o640);
    await append(`${folder}/old`, "{}");
    assertEquals(Deno.statSync(`${folder}/old`).mode! & 0o777, 0o640);
  }));

Deno.test("appendLine() follows links to files of the same user", () =>
  inFolder(async (folder) => {
    await Deno.mkdir(`${folder}/data`);
    await Deno.writeTextFile(`${folder}/data/file`, "");
    await Deno.symlink("data/../data/file", `${folder}/second`);
    await Deno.symlink(`${folder}/second`, `${folder}/first`);
    await append(`${folder}/first`, "{}");
    assertEquals(text(`${folder}/data/file`), "{}\n");
    assert(Deno.lstatSync(`${folder}/first`).isSymlink);
  }));

Deno.test("appendLine() reports the target of a dangling link, and a circle of links", () =>
  inFolder(async (folder) => {
    await Deno.symlink("missing", `${folder}/dangling`);
    assertStringIncludes(
      await refused(`${folder}/dangling`),
      `it is a link to ${folder}/missing, which does not exist. Create that file`,
    );
    await Deno.symlink("b", `${folder}/a`);
    await Deno.symlink("a", `${folder}/b`);
    assertStringIncludes(await refused(`${folder}/a`), "lead in a circle");
  }));

Deno.test({
  name: isRoot
    ? "appendLine() refuses links to files of another user"
    : "SKIPPED, needs root: appendLine() refuses links to files of another user",
  ignore: !isRoot,
  fn: () =>
    inFolder(async (folder) => {
      const victim = `${folder}/victim`;
      await Deno.writeTextFile(victim, "precious, and no newline");
      await Deno.chown(victim, OTHER_USER, OTHER_USER);
      await Deno.chmod(victim, 0o666);
      await Deno.symlink("victim", `${folder}/symbolic`);
      await Deno.symlink("symbolic", `${folder}/second`);
      await Deno.link(victim, `${folder}/hard`);
      for (const name of ["symbolic", "second", "hard"]) {
        assertStringIncludes(
          await refused(`${folder}/${name}`),
          "it is a link to a file that belongs to another user",
        );
      }
      assertEquals(text(victim), "precious, and no newline");
    }),
});

Deno.test({
  name: isRoot
    ? "appendLine() refuses files of other users in a shared folder"
    : "SKIPPED, needs root: appendLine() refuses files of other users in a shared folder",
  ignore: !isRoot,
  fn: () =>
    inFolder(async (folder) => {
      await Deno.chmod(folder, 0o1777);
      const own = `${folder}/own`;
      await Deno.writeTextFile(own, "precious");
      await Deno.link(own, `${folder}/hard`);
      const { stderr } = await new Deno.Command("ln", {
        args: ["-s", own, `${folder}/symbolic`],
        // The project's own folder may be closed to other users.
        cwd: folder,
        uid: OTHER_USER,
      }).output();
      assertEquals(new TextDecoder().decode(stderr), "");
      await Deno.writeTextFile(`${folder}/planted`, "");
      await Deno.chown(`${folder}/planted`, OTHER_USER, OTHER_USER);
      for (const name of ["hard", "symbolic", "planted"]) {
        await refused(`${folder}/${name}`);
      }
      assertEquals(text(own), "precious");
      assertEquals(text(`${folder}/planted`), "");
    }),
});

Deno.test("appendLine() refuses a file that is not regular, without waiting for a reader", () =>
  inFolder(async (folder) => {
    await new Deno.Command("mkfifo", { args: [`${folder}/pipe`] }).output();
    await Deno.mkdir(`${folder}/folder`);
    await Deno.symlink("/dev/null", `${folder}/link`);
    for (
      const [path, kind] of [
        [`${folder}/pipe`, "a pipe"],
        [`${folder}/folder`, "a folder"],
        [`${folder}/link`, "a device"],
        ["/dev/null", "a device"],
      ] as const
    ) {
      assertStringIncludes(
        await refused(path),
        `it is ${kind}, not a regular file. Name another file in EVENT_FILE.`,
      );
    }
  }));

Deno.test("appendLine() and checkWritable() name a missing folder", async () => {
  const path = "/no/such/folder/e.jsonl";
  const remedy = "Create the folder /no/such/folder, or name another file in";
  assertStringIncludes(await refused(path), remedy);
  const error = await assertRejects(
    () => checkWritable({ path, ...EVENT_FILE }),
    ServiceError,
  );
  assertStringIncludes(error.line, remedy);
});

Deno.test("checkWritable() creates no file", () =>
  inFolder(async (folder) => {
    await checkWritable({ path: `${folder}/file`, ...EVENT_FILE });
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test("appendLine() reads a long torn line once", () =>
  inFolder(async (folder) => {
    const path = `${folder}/events`;
    const size = 4 * 1024 * 1024;
    await Deno.writeTextFile(path, `{"a":1}\n{"torn":"${"x".repeat(size)}`);
    let bytes = 0;
    const read = Deno.FsFile.prototype.read;
    Deno.FsFile.prototype.read = async function (buffer) {
      const count = await read.call(this, buffer);
      bytes += count ?? 0;
      return count;
    };
    try {
      await append(path, '{"b":2}');
    } finally {
      Deno.FsFile.prototype.read = read;
    }
    assertEquals(text(path), '{"a":1}\n{"b":2}\n');
    // To find where it begins, and then to read it.
    assert(bytes < 3 * size, `${bytes} bytes read`);
  }));

Deno.test("isSameFile() recognizes a file by every path and link, also before it exists", () =>
  inFolder(async (folder) => {
    await Deno.mkdir(`${folder}/a`);
    await Deno.symlink("a", `${folder}/b`);
    const spellings = ["a/x", "./a/x", "a//x", "a/../a/x", "b/x"]
      .map((name) => `${folder}/${name}`);
    for (const exists of [false, true]) {
      if (exists) await Deno.writeTextFile(`${folder}/a/x`, "");
      for (const path of spellings) {
        assert(await isSameFile(`${folder}/a/x`, path), path);
      }
      assert(!await isSameFile(`${folder}/a/x`, `${folder}/a/y`));
    }
    await Deno.symlink("a/x", `${folder}/soft`);
    await Deno.link(`${folder}/a/x`, `${folder}/hard`);
    assert(await isSameFile(`${folder}/a/x`, `${folder}/soft`));
    assert(await isSameFile(`${folder}/soft`, `${folder}/hard`));
  }));

Deno.test("withFile() refuses a file that is replaced between check and opening", () =>
  inFolder(async (folder) => {
    const path = `${folder}/file`;
    const other = `${folder}/other`;
    await Deno.writeTextFile(other, "precious");
    await Deno.writeTextFile(path, "");
    const open = Deno.open;
    Deno.open = async (...args) => {
      await Deno.remove(path);
      await Deno.symlink("other", path);
      return await open(...args);
    };
    try {
      const seen = await withFile(
        { path, ...EVENT_FILE },
        { create: false },
        async (file) => {
          // Only what was checked again, which is a link to an own file here.
          assertEquals((await file.stat()).ino, Deno.statSync(other).ino);
          return await Promise.resolve(true);
        },
      );
      assert(seen);
    } finally {
      Deno.open = open;
    }
  }));
