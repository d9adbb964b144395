/** The button that asks for a load. */

/** A plain form: it needs no script, and ends at the page of the run. */
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
        {unsupportedReason ?? "Compares both tables and copies what differs."}
      </p>
    </form>
  );
}
