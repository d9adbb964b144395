/** The frame of the service's HTML pages. */

const STYLE =
  `body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
pre{background:#8881;padding:.8rem;overflow:auto}code{font-size:.9em}`;

/** A whole page. `body` is HTML, `title` is text. */
export function page(title: string, nonce: string, body: string): string {
  return `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>${
    escapeHtml(title)
  }</title>
<style nonce="${nonce}">${STYLE}</style></head><body><h1>${
    escapeHtml(title)
  }</h1>${body}</body></html>`;
}

/** Text as HTML. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
