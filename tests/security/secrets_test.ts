import { assert, assertEquals } from "@std/assert";
import { startEndpoint } from "../support/webhook_endpoint.ts";
import { createDatabases, PASSWORD } from "../support/databases.ts";
import { findFreePort, startServer, until } from "../support/server.ts";
import { startProgram } from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";

const TOKEN = "t0ken-Recognisable\"'&-8265";
const KEY = "recognisable key of webhook signatures";
const WEBHOOK_SECRET = `whsec_${btoa(KEY)}`;
const URL_SECRETS = [
  "T0Recognisable-Path-Part",
  "Recognisable-Query-77",
  "SlackRecognisable-Path-Part",
  "Teams/Recognisable+Signature",
];
const PATH = `/services/${URL_SECRETS[0]}?key=${URL_SECRETS[1]}`;
const WRONG = "wr0ng-recognisable-password";
const SECRETS = [PASSWORD, TOKEN, WEBHOOK_SECRET, KEY, WRONG, ...URL_SECRETS];

/** Returns every form of a secret that an output could contain. */
const FORMS = SECRETS.flatMap((secret) => {
  const bytes = new TextEncoder().encode(secret);
  return [
    secret,
    JSON.stringify(secret).slice(1, -1),
    JSON.stringify(JSON.stringify(secret)).slice(1, -1),
    encodeURIComponent(secret),
    secret.replaceAll("&", "&amp;").replaceAll('"', "&quot;"),
    btoa(String.fromCharCode(...bytes)).replace(/=+$/, ""),
  ];
});

function assertNoSecret(where: string, text: string): void {
  for (const form of FORMS) {
    assert(!text.includes(form), `${where} holds ${form}: ${text}`);
  }
}

/** Returns the arguments of a process, which every user of the host can read. */
async function argumentsOf(pid: number): Promise<string> {
  if (Deno.build.os === "linux") {
    return await Deno.readTextFile(`/proc/${pid}/cmdline`);
  }
  const { stdout } = await new Deno.Command("ps", {
    args: ["-o", "args=", "-p", String(pid)],
  }).output();
  return new TextDecoder().decode(stdout);
}

Deno.test("no output contains a secret: commands, logs, events, tables, files, arguments, pages", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await using endpoint = startEndpoint(() =>
    new Response(PASSWORD, { status: 500 })
  );
  const folder = await Deno.makeTempDir();
  const outputs: [string, string][] = [];
  try {
    const environment = {
      ...db.environment,
      API_TOKEN: TOKEN,
      EVENT_WEBHOOK_URL: `http://127.0.0.1:${endpoint.port}${PATH}`,
      EVENT_WEBHOOK_SECRET: WEBHOOK_SECRET,
      ALERT_SLACK_URL: `http://127.0.0.1:${endpoint.port}/services/T0/B0/${
        URL_SECRETS[2]
      }`,
      ALERT_TEAMS_URL_FILE: `${folder}/teams`,
      EVENT_PUBLISHER_TYPE: "file",
      EVENT_FILE: `${folder}/events.jsonl`,
      EVENT_SPOOL_FILE: `${folder}/spool.jsonl`,
      LOG_LEVEL: "TRACE",
      RETRY_ATTEMPTS: "1",
    };
    await Deno.writeTextFile(
      `${folder}/teams`,
      `http://127.0.0.1:${endpoint.port}/workflows?sig=${
        encodeURIComponent(URL_SECRETS[3]!)
      }\n`,
    );
    // The next attempt overwrites the traces of this one.
    const keepTables = async () => {
      for (
        const table of ["run", "table_load", "event", "publisher", "delivery"]
      ) {
        const rows = await db.warehouse.unsafe(
          `select t::text as row from marketing_data_service.${table} t`,
        );
        assert(rows.length > 0);
        outputs.push([table, rows.map((row) => row.row).join("\n")]);
      }
    };
    const closed = String(findFreePort());
    const cases: [number, string[], Record<string, string>][] = [
      [0, ["load"], {}],
      [0, ["load", "--json"], {}],
      [0, ["config"], {}],
      [0, ["config", "--json"], {}],
      [0, ["health", "--json"], {}],
      [0, ["verify"], {}],
      [0, ["runs", "--json"], {}],
      [0, ["events", "--json"], {}],
      [0, ["schema", "print"], {}],
      [69, ["load", "--json"], { DWH_DB_PASSWORD: WRONG }],
      [69, ["load"], { OLIST_DB_PASSWORD: WRONG }],
      [69, ["load"], { DWH_DB_PORT: closed }],
      [69, ["health"], { OLIST_DB_PASSWORD: WRONG }],
      [0, ["load"], { EVENT_WEBHOOK_URL: `http://127.0.0.1:${closed}${PATH}` }],
      // Mistakes: the explanation must not contain the value.
      [78, ["load"], { EVENT_WEBHOOK_SECRET: WRONG }],
      [78, ["load"], { EVENT_WEBHOOK_SECRET: "", EVENT_FILE: "" }],
      [78, ["load"], {
        EVENT_WEBHOOK_URL: `https://user:${WRONG}@hooks.example${PATH}`,
      }],
      [78, ["load"], { ALERT_SLACK_URL: `hooks.example/${WRONG}` }],
      [78, ["config"], {
        DWH_DB_PASSWORD_FILE: "/gone",
      }],
    ];
    for (const [exit, words, changes] of cases) {
      const what = `${words.join(" ")} ${Object.keys(changes)}`;
      // The delay of the last attempt would postpone the webhook.
      await db.warehouse.unsafe(
        `do $$ begin if to_regclass('marketing_data_service.publisher') is not null then
           update marketing_data_service.publisher set next_attempt_at = null; end if; end $$`,
      );
      const { process, finished } = startProgram(words, {
        ...environment,
        ...changes,
      });
      outputs.push([`arguments of ${what}`, await argumentsOf(process.pid)]);
      const { code, stdout, stderr } = await finished;
      if (!words.includes("config")) {
        assertEquals(code, exit, `${what}: ${stdout}${stderr}`);
      }
      outputs.push([what, stdout + stderr]);
      await keepTables();
    }
    assert(endpoint.posts.length + endpoint.forged.length > 0);
    const text = outputs.map(([, text]) => text).join("\n");
    for (const name of ["Slack", "Teams"]) {
      assert(text.includes(`${name} at http://127.0.0.1:${endpoint.port}`));
    }

    await using server = await startServer(
      { environment },
      { LISTEN_CHANNEL: "x" },
    );
    const authorization = `Bearer ${TOKEN}`;
    const ask = async (path: string, init: RequestInit = {}) => {
      const response = await server.fetch(path, {
        ...init,
        headers: { authorization, ...init.headers },
      });
      const headers = JSON.stringify([...response.headers]);
      outputs.push([path, await response.text() + headers]);
      return response.status;
    };
    assertEquals(await ask("/load", { method: "POST" }), 200);
    await until("the webhook was tried", async () => {
      await ask("/events");
      return outputs.at(-1)![1].includes("it answered 400");
    });
    for (
      const path of [
        "/",
        "/health",
        "/runs",
        "/events",
        "/metrics",
        "/openapi.json",
        "/docs",
      ]
    ) {
      assertEquals(await ask(path), 200);
    }
    assertEquals(await ask("/", { headers: { accept: "text/html" } }), 200);
    assertEquals(await ask("/load", { method: "POST", body: "{" }), 400);
    outputs.push(["arguments", await argumentsOf(server.pid)]);

    // A token in a URL appears in logs and histories, so it is ignored.
    for (const name of ["token", "access_token", "api_token", "API_TOKEN"]) {
      const query = new URLSearchParams({ [name]: TOKEN });
      const response = await server.fetch(`/runs?${query}`);
      outputs.push([`?${name}=`, await response.text()]);
      assertEquals(response.status, 401);
    }
    server.kill("SIGTERM");
    const { stdout, stderr } = await server.finished;
    outputs.push(["the service's log", stdout + stderr]);

    await keepTables();
    for (const file of ["events.jsonl", "spool.jsonl"]) {
      outputs.push([file, await Deno.readTextFile(`${folder}/${file}`)]);
    }
    for (const [where, text] of outputs) assertNoSecret(where, text);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("load refuses a webhook without a secret, with a password or with another scheme, and names the variable", async () => {
  for (
    const [changes, message] of [
      [
        { EVENT_WEBHOOK_URL: "https://hooks.example/x" },
        "receivers could not detect",
      ],
      [
        {
          EVENT_WEBHOOK_URL: "https://me:pw@hooks.example/",
          EVENT_WEBHOOK_SECRET: WEBHOOK_SECRET,
        },
        "EVENT_WEBHOOK_URL=*** must be an http or https URL without user and password",
      ],
      [
        {
          EVENT_WEBHOOK_URL: "ftp://hooks.example/",
          EVENT_WEBHOOK_SECRET: WEBHOOK_SECRET,
        },
        "EVENT_WEBHOOK_URL=*** must be",
      ],
      [
        { EVENT_WEBHOOK_SECRET: "whsec_c2hvcnQ=" },
        "EVENT_WEBHOOK_SECRET=*** must be whsec_ followed by the base64 of 24 to 64 bytes",
      ],
    ] as const
  ) {
    const { code, stderr } = await runProgram(["load"], changes);
    assertEquals(code, 78);
    assert(stderr.includes(message), stderr);
  }
});
