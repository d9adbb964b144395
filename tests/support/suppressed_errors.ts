/**
 * Makes the reports of failed tests complete. When a test fails and the disposal of
 * its scene fails as well, Deno prints neither error, only that one was suppressed.
 *
 * @module
 */
Object.defineProperty(SuppressedError.prototype, "cause", {
  get(this: SuppressedError) {
    return new AggregateError(
      [this.suppressed, this.error],
      "the error of the test, and the error of the disposal",
    );
  },
});
