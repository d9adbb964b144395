declare module "@std/async/abortable" {
  export function abortable<T>(
    work: Promise<T>,
    signal: AbortSignal,
  ): Promise<T>;
}

declare module "@std/async/pool" {
  export function pooledMap<T, R>(
    limit: number,
    items: Iterable<T> | AsyncIterable<T>,
    map: (item: T) => Promise<R>,
  ): AsyncIterableIterator<R>;
}

declare module "@std/async/retry" {
  export class RetryError extends Error {
    constructor(cause: unknown, attempts: number);
  }
  export interface RetryOptions {
    multiplier?: number;
    /** Milliseconds. */
    maxTimeout?: number;
    maxAttempts?: number;
    /** Milliseconds. */
    minTimeout?: number;
    jitter?: number;
    isRetriable?: (error: unknown) => boolean;
    signal?: AbortSignal;
  }
  export function retry<T>(
    work: (() => Promise<T>) | (() => T),
    options?: RetryOptions,
  ): Promise<T>;
}

declare module "@std/cli/parse-args" {
  export interface ParseOptions {
    boolean?: readonly string[];
    string?: readonly string[];
    collect?: readonly string[];
    alias?: Readonly<Record<string, string>>;
    unknown?: (word: string, key?: string, value?: unknown) => unknown;
  }
  export function parseArgs(
    words: readonly string[],
    options?: ParseOptions,
  ): Record<string, unknown> & { _: (string | number)[] };
}

declare module "@std/text/closest-string" {
  export function closestString(word: string, known: string[]): string;
}

declare module "cli-progress" {
  interface Bar {
    setTotal(total: number): void;
    update(value: number, payload?: object): void;
  }
  interface MultiBar {
    create(total: number, start: number, payload?: object): Bar;
    /** Prints above the bars with their next update. */
    log(text: string): void;
    remove(bar: Bar): void;
    stop(): void;
    update(): void;
  }
  const library: { MultiBar: new (options: object) => MultiBar };
  export default library;
}

declare module "@std/async/delay" {
  export function delay(
    milliseconds: number,
    options?: { signal?: AbortSignal; persistent?: boolean },
  ): Promise<void>;
}
