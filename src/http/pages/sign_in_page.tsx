/** The sign-in page. */

/** The form. It sends the token in the body, because browsers and logs keep URLs. */
export function SignInPage(
  { next, refusal }: { next: string; refusal: string | undefined },
) {
  return (
    <section class="card sign-in">
      <h1>Sign in</h1>
      <p>Enter the token of this service, the value of API_TOKEN.</p>
      <form method="post" action="/session">
        <input type="hidden" name="next" value={next} />
        <label for="token">Token</label>
        <input
          id="token"
          name="token"
          type="password"
          autocomplete="current-password"
          required
          autofocus
          aria-invalid={refusal ? "true" : undefined}
          aria-describedby={refusal ? "refusal" : undefined}
        />
        {refusal && <p id="refusal" class="refusal" role="alert">{refusal}</p>}
        <button type="submit">Sign in</button>
      </form>
    </section>
  );
}
