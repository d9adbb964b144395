/**
 * Files that grow by whole lines: the event file and the spool.
 *
 * The folder of such a file may be writable for other users. So a link to a file
 * of another user is refused, and only the owner can read a new file. An existing
 * file keeps its mode.
 */
import { Buffer } from "node:buffer";
import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { basename, dirname, isAbsolute, join } from "node:path";
import { ServiceError } from "./errors.ts";

/** A file that grows, and its names in messages. */
export interface AppendFile {
  readonly path: string;
  /** Completes "Cannot write to the …". */
  readonly label: string;
  /** The variable that holds the path. */
  readonly variable: string;
}

/** Whether to cut or keep a last line that has no newline and is not valid JSON. */
export type TornLine = "cut" | "keep";

/** Maximum length of a chain of links, as on Linux. */
const MAX_LINKS = 40;

/** Maximum attempts to open a file that another process creates or replaces. */
const MAX_OPENS = 5;

export const NEWLINE = 10;
const BLOCK_BYTES = 64 * 1024;

/** Maximum length of a line that is read. No failure of a run is longer. */
const MAX_LINE_BYTES = 64 * 1024 * 1024;

/**
 * Appends one line under a lock on the file, and syncs it to disk. A last line
 * without a newline gets one first. With `cut`, a torn JSON object is removed
 * instead, because it is written again.
 *
 * @throws {ServiceError} `event_file_unwritable`.
 */
export async function appendLine(
  target: AppendFile,
  line: string,
  torn: TornLine,
): Promise<void> {
  await withFile(target, { create: true }, async (file) => {
    await file.lock(true);
    await repairLastLine(file, torn);
    const end = await file.seek(0, Deno.SeekMode.End);
    try {
      await writeAll(
        file,
        new TextEncoder().encode(`${line.replaceAll("\n", " ")}\n`),
      );
      await file.sync();
    } catch (error) {
      // A part of the line would count as a torn line, or appear twice.
      await file.truncate(end).catch(() => {});
      throw error;
    }
  });
}

/**
 * Opens the file for reading and writing, and passes it to `work`. With `create`,
 * a missing file is created with mode 0600. Otherwise `work` is not called for a
 * missing file, and the result is `undefined`.
 *
 * @throws {ServiceError} `event_file_unwritable`, also when `work` throws another error.
 */
export async function withFile<T>(
  target: AppendFile,
  options: { readonly create: boolean },
  work: (file: Deno.FsFile) => Promise<T>,
): Promise<T | undefined> {
  try {
    using file = await open(target.path, options.create);
    return file && await work(file);
  } catch (error) {
    throw error instanceof ServiceError ? error : unwritable(target, error);
  }
}

/**
 * Checks that the file can be appended to, without creating it.
 *
 * @throws {ServiceError} `event_file_unwritable`.
 */
export async function checkWritable(target: AppendFile): Promise<void> {
  const exists = await withFile(
    target,
    { create: false },
    () => Promise.resolve(true),
  );
  if (exists) return;
  try {
    await access(dirname(target.path), constants.W_OK);
  } catch (error) {
    throw unwritable(target, error);
  }
}

/** Returns whether both paths name the same file, also through links, and also before it exists. */
export async function isSameFile(a: string, b: string): Promise<boolean> {
  return await identityOf(a) === await identityOf(b);
}

async function identityOf(path: string): Promise<string> {
  const info = await Deno.stat(path).catch(() => undefined);
  if (info?.ino) return `${info.dev}:${info.ino}`;
  const folder = await Deno.realPath(dirname(path))
    .catch(() => dirname(path));
  return join(folder, basename(path));
}

/** The reason why the service refuses a file. */
class UnfitFileError extends Error {
  /** @param remedy a way to use this path, where there is a safe one. */
  constructor(reason: string, readonly remedy?: string) {
    super(reason);
  }
}

async function open(
  path: string,
  create: boolean,
): Promise<Deno.FsFile | undefined> {
  for (let opens = 1;; opens++) {
    const expected = await fitFile(path);
    if (!expected && !create) return undefined;
    try {
      const file = await Deno.open(
        path,
        // Exclusive creation follows no link.
        expected
          ? { read: true, write: true }
          : { read: true, write: true, createNew: true, mode: 0o600 },
      );
      const { dev, ino } = await file.stat();
      if (!expected || (dev === expected.dev && ino === expected.ino)) {
        return file;
      }
      file.close();
    } catch (error) {
      const isRaced = expected
        ? error instanceof Deno.errors.NotFound
        : error instanceof Deno.errors.AlreadyExists;
      if (!isRaced || opens === MAX_OPENS) throw error;
      continue;
    }
    if (opens === MAX_OPENS) {
      throw new UnfitFileError(
        "another process keeps replacing it",
        "Name a file in a folder that only the service writes to",
      );
    }
  }
}

/** Returns the regular file that the path names, or `undefined` when a new file can be created. */
async function fitFile(path: string): Promise<Deno.FileInfo | undefined> {
  let name = path;
  for (let links = 0;; links++) {
    const info = await lstat(name);
    if (!info) {
      if (links === 0) return undefined;
      throw new UnfitFileError(
        `it is a link to ${name}, which does not exist`,
        "Create that file, or remove the link",
      );
    }
    if (!info.isSymlink) {
      await refuseUnfit(name, info, links > 0);
      return info;
    }
    // Root can change any file, so its links are trusted.
    if (!isOwn(info) && info.uid !== 0) {
      throw new UnfitFileError(
        `${name} is a link that belongs to another user`,
        "Remove the link",
      );
    }
    if (links === MAX_LINKS) {
      throw new UnfitFileError("its links lead in a circle", "Remove the link");
    }
    const target = await Deno.readLink(name);
    // Keep `..` as it is: the name of the folder may be a link, too.
    name = isAbsolute(target) ? target : `${dirname(name)}/${target}`;
  }
}

async function refuseUnfit(
  name: string,
  info: Deno.FileInfo,
  isLinked: boolean,
): Promise<void> {
  if (!info.isFile) throw notRegular(info);
  if (isOwn(info)) {
    if ((info.nlink ?? 1) > 1 && await isShared(dirname(name))) {
      throw new UnfitFileError(
        "it is a hard link in a folder that other users can write to",
        "Remove the link",
      );
    }
    return;
  }
  if (isLinked || (info.nlink ?? 1) > 1) {
    throw new UnfitFileError(
      "it is a link to a file that belongs to another user",
      "Remove the link, or make the service's user the owner of that file",
    );
  }
  // An attacker cannot create a file that belongs to root.
  if (info.uid !== 0 && await isShared(dirname(name))) {
    throw new UnfitFileError(
      "it belongs to another user, in a folder that other users can write to",
      "Remove the file",
    );
  }
}

async function lstat(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.lstat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function isOwn({ uid }: Deno.FileInfo): boolean {
  // Both are null on Windows, where creating a link needs a privilege.
  return uid === Deno.uid();
}

/** Returns whether every user of the host can create files in the folder. */
async function isShared(folder: string): Promise<boolean> {
  const { mode } = await Deno.stat(folder);
  return mode !== null && (mode & 0o002) !== 0;
}

function notRegular(info: Deno.FileInfo): UnfitFileError {
  const kind = info.isDirectory
    ? "folder"
    : info.isFifo
    ? "pipe"
    : info.isSocket
    ? "socket"
    : "device";
  return new UnfitFileError(`it is a ${kind}, not a regular file`);
}

function unwritable(target: AppendFile, error: unknown): ServiceError {
  const { path, label, variable } = target;
  // The message of Deno names a flag that a compiled program does not have.
  const reason = error instanceof Deno.errors.NotCapable
    ? "the program has no permission for it"
    : (error as Error).message;
  return new ServiceError(
    "event_file_unwritable",
    `Cannot write to the ${label} ${path}: ${reason}`,
    { cause: error, remedy: remedyFor(error, variable, path) },
  );
}

function remedyFor(error: unknown, variable: string, path: string): string {
  const other = `or name another file in ${variable}.`;
  if (error instanceof UnfitFileError) {
    return error.remedy
      ? `${error.remedy}, ${other}`
      : `Name another file in ${variable}.`;
  }
  const { name, code } = error as Error & { code?: string };
  if (name === "NotCapable") {
    return `Name a file in ${variable} in a folder that the program may write to. \`deno task compile --write FOLDER\` and \`deno run --allow-write=FOLDER\` set that folder.`;
  }
  if (code === "ENOENT") return `Create the folder ${dirname(path)}, ${other}`;
  return `Make the file and its folder writable for the service, ${other}`;
}

/** Makes the file end with a newline. */
async function repairLastLine(
  file: Deno.FsFile,
  torn: TornLine,
): Promise<void> {
  const { size } = await file.stat();
  const tail = await lastLine(file, size);
  if (tail.length === 0) return;
  const isTorn = torn === "cut" && isBegun(tail) && !isJson(tail);
  if (isTorn) return await file.truncate(size - tail.length);
  await file.seek(0, Deno.SeekMode.End);
  await writeAll(file, new Uint8Array([NEWLINE]));
}

/** Returns whether a crash can have left the line: it begins as an object, or it has only NUL bytes. */
function isBegun(line: Uint8Array): boolean {
  const first = line.find((byte) => byte !== 0);
  return first === undefined || first === "{".charCodeAt(0);
}

/** Returns the bytes after the last newline. */
async function lastLine(file: Deno.FsFile, size: number): Promise<Uint8Array> {
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - BLOCK_BYTES);
    const block = await readBytes(file, start, end - start);
    const newline = block.lastIndexOf(NEWLINE);
    if (newline >= 0) {
      const from = start + newline + 1;
      return await readBytes(file, from, size - from);
    }
    end = start;
  }
  return await readBytes(file, 0, size);
}

/** The bytes of a file from `start` up to `end`. */
interface FilePart {
  readonly start: number;
  readonly end: number;
}

/** A line with its newline. Without its bytes where it is too long. */
interface Line extends FilePart {
  readonly bytes: Uint8Array | undefined;
}

/** Reads the lines of a file of any size. Needs the memory of one line. */
export async function* readLines(file: Deno.FsFile): AsyncGenerator<Line> {
  let pieces: Uint8Array[] = [];
  let start = 0;
  let end = 0;
  const take = (): Line => {
    const isLong = end - start > MAX_LINE_BYTES;
    const bytes = isLong ? undefined : Buffer.concat(pieces);
    const line = { start, end, bytes };
    pieces = [];
    start = end;
    return line;
  };
  while (true) {
    const block = await readBytes(file, end, BLOCK_BYTES);
    for (let from = 0; from < block.length;) {
      const newline = block.indexOf(NEWLINE, from);
      const to = newline < 0 ? block.length : newline + 1;
      end += to - from;
      if (end - start > MAX_LINE_BYTES) pieces = [];
      else pieces.push(block.subarray(from, to));
      if (newline >= 0) yield take();
      from = to;
    }
    if (block.length < BLOCK_BYTES) break;
  }
  if (end > start) yield take();
}

async function readBytes(
  file: Deno.FsFile,
  start: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await file.seek(start, Deno.SeekMode.Start);
  let read = 0;
  while (read < length) {
    const count = await file.read(bytes.subarray(read));
    if (count === null) break;
    read += count;
  }
  return bytes.subarray(0, read);
}

/** Replaces the content by parts of it, in the old order. A crash in between keeps these parts. */
export async function keepOnly(
  file: Deno.FsFile,
  parts: readonly FilePart[],
): Promise<void> {
  let to = 0;
  for (const { start, end } of parts) {
    for (let from = start; from < end;) {
      const bytes = await readBytes(
        file,
        from,
        Math.min(BLOCK_BYTES, end - from),
      );
      if (bytes.length === 0) break;
      await file.seek(to, Deno.SeekMode.Start);
      await writeAll(file, bytes);
      from += bytes.length;
      to += bytes.length;
    }
  }
  await file.truncate(to);
  await file.sync();
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length;) {
    written += await file.write(bytes.subarray(written));
  }
}

function isJson(bytes: Uint8Array): boolean {
  try {
    JSON.parse(new TextDecoder().decode(bytes));
    return true;
  } catch {
    return false;
  }
}
