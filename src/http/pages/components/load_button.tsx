/** The button that starts a load. */

/** A form that needs no script and leads to the page of the run. */
export function LoadButton(
  { unsupportedReason }: { unsupportedReason: string | undefined },
) {
  return (
    <form class="load" method="post" action="/load-async">
      <button
        type="submit"
        id="load"
        disabled={unsupportedReason !== undefined}
        aria-describedby="load-hint"
      >
        Load now
      </button>
      <p id="load-hint">
        {unsupportedReason ??
          "Compares the tables and copies rows that differ."}
      </p>
    </form>
  );
}
