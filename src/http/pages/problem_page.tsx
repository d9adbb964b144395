/** The page of an error. Programs get a problem document instead. */
import type { ServiceError } from "../../errors.ts";
import { Icon } from "./components/icons.tsx";

/** The cause, the remedy, and a link to the overview. */
export function ProblemPage(
  { error, title, requestId }: {
    error: ServiceError;
    title: string;
    requestId: string | undefined;
  },
) {
  return (
    <>
      <section class="verdict">
        <Icon state="failed" />
        <div>
          <h1>{title}</h1>
          <p>
            Status {error.kind.status}, <code>{error.code}</code>
          </p>
        </div>
      </section>
      <section class="outcome-panel bad" aria-label="What went wrong">
        <p class="message">{error.message}</p>
        <p class="remedy">
          <b>What to do</b> {error.remedy}
        </p>
      </section>
      <p>
        <a href="/">Overview</a>
      </p>
      {requestId && (
        <p class="path">
          Request <code>{requestId}</code>
        </p>
      )}
    </>
  );
}
