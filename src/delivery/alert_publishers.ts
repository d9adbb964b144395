/**
 * The publishers of alerts: Slack and Microsoft Teams.
 *
 * Their texts are elements without markup. So no text of a database can mention a
 * person, add a link or change the format.
 */
import type { Config } from "../config/config.ts";
import { namesOf } from "../tables/declaration.ts";
import { type Alert, alertOf } from "./alert.ts";
import { httpPublisher } from "./http_publisher.ts";
import type { Publisher } from "./publisher.ts";

/** Milliseconds after which an event is outdated. Its alert is not sent. */
const MAX_AGE_MILLISECONDS = 3 * 86_400_000;

/** Returns the configured publishers of alerts. */
export function alertPublishers(config: Config): Publisher[] {
  const destinations = [
    {
      name: "slack",
      variable: "ALERT_SLACK_URL",
      label: "Slack",
      url: config.alertSlackUrl,
      messageOf: slackMessage,
    },
    {
      name: "teams",
      variable: "ALERT_TEAMS_URL",
      label: "Teams",
      url: config.alertTeamsUrl,
      messageOf: teamsMessage,
    },
  ] as const;
  const context = {
    declared: namesOf(config.tables),
    warehouse: config.dwh.database,
  };
  return destinations.flatMap(({ url, messageOf, ...destination }) =>
    url
      ? httpPublisher({
        ...destination,
        url,
        retryDelaySeconds: config.retryDelaySeconds,
        requestOf({ payload, timestamp, failingTables }) {
          const age = Date.now() - Date.parse(`${timestamp}Z`);
          if (age > MAX_AGE_MILLISECONDS) return undefined;
          const event = JSON.parse(payload);
          const alert = alertOf(event, failingTables, context);
          return alert && {
            // Without the character set, Teams counts each character twice.
            headers: { "content-type": "application/json; charset=utf-8" },
            body: JSON.stringify(messageOf(alert)),
            failingTables: alert.failingTables,
          };
        },
      })
      : []
  );
}

/**
 * Returns a message for an incoming webhook of Slack. The link is not a button: Slack
 * shows a warning beside a button of an app that does not answer clicks.
 */
export function slackMessage({ title, lines, runUrl }: Alert) {
  const bold = (text: string) => ({
    type: "text",
    text,
    style: { bold: true },
  });
  return {
    // Notifications show this text, in which these characters are markup.
    text: title.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
      .replaceAll(">", "&gt;"),
    unfurl_links: false,
    blocks: [{
      type: "rich_text",
      elements: [{
        type: "rich_text_section",
        elements: [
          bold(title),
          ...lines.flatMap(({ label, text }) => [
            bold(`\n${label}: `),
            { type: "text", text },
          ]),
          ...(runUrl
            ? [
              { type: "text", text: "\n" },
              { type: "link", url: runUrl, text: "Open the run" },
            ]
            : []),
        ],
      }],
    }],
  };
}

/** Returns an Adaptive Card for a workflow of Microsoft Teams that posts webhook requests. */
export function teamsMessage({ isFailure, title, lines, runUrl }: Alert) {
  const block = (...inlines: readonly Readonly<Record<string, string>>[]) => ({
    type: "RichTextBlock",
    inlines: inlines.map((inline) => ({ type: "TextRun", ...inline })),
  });
  return {
    type: "message",
    attachments: [{
      contentType: "application/vnd.microsoft.card.adaptive",
      contentUrl: null,
      content: {
        $schema: "http://adaptivecards.io/schemas/adaptive-card.json",
        type: "AdaptiveCard",
        // The first version with text that is not Markdown.
        version: "1.2",
        msteams: { width: "Full" },
        body: [
          block({
            text: title,
            weight: "Bolder",
            size: "Medium",
            color: isFailure ? "Attention" : "Good",
          }),
          ...lines.map(({ label, text }) =>
            block({ text: `${label}: `, weight: "Bolder" }, { text })
          ),
        ],
        ...(runUrl
          ? {
            actions: [{
              type: "Action.OpenUrl",
              title: "Open the run",
              url: runUrl,
            }],
          }
          : {}),
      },
    }],
  };
}
