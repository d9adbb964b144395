/** Shapes of states, in addition to color and text. */
import type { RunState } from "../../../runs/run.ts";

/** The shapes. Each page has them once, and icons refer to them. */
export function Icons() {
  return (
    <svg class="unseen" aria-hidden="true">
      <symbol id="i-succeeded" viewBox="0 0 16 16">
        <circle cx="8" cy="8" r="8" />
        <path d="M4.5 8.3l2.4 2.4 4.7-5" />
      </symbol>
      <symbol id="i-failed" viewBox="0 0 16 16">
        <path class="fill" d="M4.7 0h6.6L16 4.7v6.6L11.3 16H4.7L0 11.3V4.7z" />
        <path d="M5.2 5.2l5.6 5.6m0-5.6l-5.6 5.6" />
      </symbol>
      <symbol id="i-interrupted" viewBox="0 0 16 16">
        <path class="fill" d="M8 .6l8 14.6H0z" />
        <path d="M8 6v4m0 2.2v.6" />
      </symbol>
      <symbol id="i-running" viewBox="0 0 16 16">
        <circle class="ring" cx="8" cy="8" r="6.8" />
        <path class="fill" d="M6.2 4.8l5 3.2-5 3.2z" />
      </symbol>
      <symbol id="i-queued" viewBox="0 0 16 16">
        <circle class="ring" cx="8" cy="8" r="6.8" />
        <path class="hand" d="M8 4.4V8l2.4 1.6" />
      </symbol>
    </svg>
  );
}

/** The shape of a state. */
export function Icon({ state }: { state: RunState }) {
  return (
    <svg class={`icon ${state}`} aria-hidden="true">
      <use href={`#i-${state}`} />
    </svg>
  );
}

/** A state as shape and text. */
export function Status({ state, text }: { state: RunState; text?: string }) {
  return (
    <span class={`status ${state}`}>
      <Icon state={state} />
      {text ?? nameOf(state)}
    </span>
  );
}

/** Returns the name of a state on a page. */
export function nameOf(state: RunState): string {
  return `${state[0]!.toUpperCase()}${state.slice(1)}`;
}
