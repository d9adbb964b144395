/**
 * A receiver of alerts on loopback, in the place of Slack and of Microsoft Teams.
 * It refuses what their documentation does not allow:
 *
 * - Slack: at most 50 blocks, and at most 3,000 characters in a text. In `text`,
 *   `&`, `<` and `>` are escaped. Rich text has the elements `text` and `link`.
 * - Teams: at most 28 KB, in UTF-8. One Adaptive Card, whose texts are not Markdown.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert";

/** What the receiver shows to people. */
interface Shown {
  readonly title: string;
  /** The text without its format, one line after the other. */
  readonly text: string;
  readonly link: string | undefined;
}

type Answer = () => Response | Promise<Response>;

/** A listening receiver. */
interface AlertEndpoint extends AsyncDisposable {
  readonly slackUrl: string;
  readonly teamsUrl: string;
  readonly slack: readonly Shown[];
  readonly teams: readonly Shown[];
  /** Messages that break a rule. A test expects none. */
  readonly refused: readonly unknown[];
  /** The answer to the next valid messages, instead of the documented one. */
  answer: Answer | undefined;
}

/** Starts a receiver. */
export function startAlertEndpoint(): AlertEndpoint {
  const slack: Shown[] = [];
  const teams: Shown[] = [];
  const refused: unknown[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      try {
        assertEquals(request.method, "POST");
        assertEquals(
          request.headers.get("content-type"),
          "application/json; charset=utf-8",
        );
        const bytes = await request.bytes();
        const { pathname, search } = new URL(request.url);
        if (pathname + search === SLACK_PATH) slack.push(shownInSlack(bytes));
        else {
          assertEquals(pathname + search, TEAMS_PATH);
          teams.push(shownInTeams(bytes));
        }
        if (endpoint.answer) return await endpoint.answer();
        return pathname === SLACK_PATH
          ? new Response("ok")
          : new Response(null, { status: 202 });
      } catch (error) {
        refused.push(error);
        return new Response("invalid_payload", { status: 400 });
      }
    },
  );
  const origin = `http://127.0.0.1:${server.addr.port}`;
  const endpoint: AlertEndpoint = {
    slackUrl: origin + SLACK_PATH,
    teamsUrl: origin + TEAMS_PATH,
    slack,
    teams,
    refused,
    answer: undefined,
    async [Symbol.asyncDispose]() {
      await server.shutdown();
    },
  };
  return endpoint;
}

const SLACK_PATH = "/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX";
const TEAMS_PATH =
  "/workflows/0123456789abcdef/triggers/manual/paths/invoke?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=Abc-123_sig";

// deno-lint-ignore no-explicit-any -- a message of any shape, which is checked
type Message = any;

function parse(bytes: Uint8Array): Message {
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
}

function assertKeys(value: object, ...allowed: readonly string[]): void {
  for (const key of Object.keys(value)) assert(allowed.includes(key), key);
}

/** Checks a message to an incoming webhook of Slack. */
export function shownInSlack(bytes: Uint8Array): Shown {
  const message = parse(bytes);
  assertKeys(message, "text", "blocks", "unfurl_links");
  assert(message.text.length > 0 && message.text.length <= 40_000);
  assertMatch(message.text, /^([^&<>]|&(amp|lt|gt);)*$/);
  assert(message.blocks.length > 0 && message.blocks.length <= 50);
  let text = "";
  let link: string | undefined;
  for (const block of message.blocks) {
    assertKeys(block, "type", "elements");
    assertEquals(block.type, "rich_text");
    for (const section of block.elements) {
      assertKeys(section, "type", "elements");
      assertEquals(section.type, "rich_text_section");
      for (const element of section.elements) {
        assert(element.text.length > 0 && element.text.length <= 3000);
        if (element.type === "link") {
          assertKeys(element, "type", "url", "text", "style");
          link = new URL(element.url).href;
        } else {
          assertEquals(element.type, "text");
          assertKeys(element, "type", "text", "style");
          text += element.text;
        }
      }
    }
  }
  return { title: text.split("\n")[0]!, text: text.trimEnd(), link };
}

/** Checks a message to a workflow of Teams that posts webhook requests. */
export function shownInTeams(bytes: Uint8Array): Shown {
  assert(bytes.length <= 28 * 1024, `${bytes.length} bytes`);
  const message = parse(bytes);
  assertKeys(message, "type", "attachments");
  assertEquals(message.type, "message");
  assertEquals(message.attachments.length, 1);
  const [attachment] = message.attachments;
  assertKeys(attachment, "contentType", "contentUrl", "content");
  assertEquals(
    attachment.contentType,
    "application/vnd.microsoft.card.adaptive",
  );
  assertEquals(attachment.contentUrl, null);
  const { content } = attachment;
  assertKeys(
    content,
    "$schema",
    "type",
    "version",
    "msteams",
    "body",
    "actions",
  );
  assertEquals(content.type, "AdaptiveCard");
  assertEquals(content.version, "1.2");
  const lines = content.body.map((block: Message) => {
    // Teams reads TextBlock and FactSet as Markdown, but not a RichTextBlock.
    assertKeys(block, "type", "inlines");
    assertEquals(block.type, "RichTextBlock");
    return block.inlines.map((inline: Message) => {
      assertKeys(inline, "type", "text", "weight", "size", "color");
      assertEquals(inline.type, "TextRun");
      assert(inline.text.length > 0);
      return inline.text;
    }).join("");
  });
  const actions = content.actions ?? [];
  assert(actions.length <= 1);
  for (const action of actions) {
    assertKeys(action, "type", "title", "url");
    assertEquals(action.type, "Action.OpenUrl");
  }
  return {
    title: lines[0],
    text: lines.join("\n"),
    link: actions[0] && new URL(actions[0].url).href,
  };
}
