/** The file publisher: appends events to a file, one per line. */
import {
  type AppendFile,
  appendLine,
  checkWritable,
  isSameFile,
  withFile,
} from "../append_file.ts";
import type { Config } from "../config/config.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import { spoolFile } from "../runs/spool.ts";
import type { Publisher } from "./publisher.ts";

type FileConfig = Pick<
  Config,
  "eventPublisherType" | "eventFile" | "eventSpoolFile"
>;

/** Seconds before the service retries to write the file. */
const RETRY_SECONDS = 30;

/**
 * Returns a publisher that appends each event to the file, synced to disk. After
 * a failure, events wait until the file can be written.
 */
export function filePublisher(path: string): Publisher {
  return {
    name: "file",
    variable: "EVENT_FILE",
    target: null,
    label: "the event file",
    delaySeconds: () => RETRY_SECONDS,
    isRemote: false,
    async publish({ payload }) {
      try {
        // The event of a torn line is not marked as delivered, so it is written again.
        await appendLine(eventFile(path), payload, "cut");
        return { kind: "delivered" };
      } catch (error) {
        return { kind: "failed", error: asServiceError(error).line };
      }
    },
  };
}

function eventFile(path: string): AppendFile {
  return { path, label: "event file", variable: "EVENT_FILE" };
}

/**
 * Checks the files before a load, and creates the event file.
 *
 * @throws {ServiceError} `event_file_unwritable` or `configuration`.
 */
export async function prepareFiles(config: FileConfig): Promise<void> {
  await checkFiles(config);
  if (config.eventPublisherType === "file") {
    await withFile(
      eventFile(config.eventFile),
      { create: true },
      () => Promise.resolve(),
    );
    // Only an existing file shows whether names that differ in case are the same.
    await refuseSameFile(config.eventFile, config.eventSpoolFile);
  }
}

/**
 * Checks that the event file and the spool can be written and are not the same
 * file. Creates neither.
 *
 * @throws {ServiceError} `event_file_unwritable` or `configuration`.
 */
export async function checkFiles(config: FileConfig): Promise<void> {
  if (config.eventPublisherType === "file") {
    await checkWritable(eventFile(config.eventFile));
    await refuseSameFile(config.eventFile, config.eventSpoolFile);
  }
  await checkWritable(spoolFile(config.eventSpoolFile));
}

async function refuseSameFile(
  eventPath: string,
  spoolPath: string,
): Promise<void> {
  if (!await isSameFile(eventPath, spoolPath)) return;
  throw new ServiceError(
    "configuration",
    `Cannot start: EVENT_FILE=${eventPath} and EVENT_SPOOL_FILE=${spoolPath} are the same file`,
    { remedy: "Set one of them to another file." },
  );
}
