import { parseCrontab } from "../../src/config/crontab.ts";
import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { Deployment } from "kubernetes-models/apps/v1/Deployment";
import { CronJob } from "kubernetes-models/batch/v1/CronJob";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import { PodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget";
import { ConfigMap } from "kubernetes-models/v1/ConfigMap";
import { Secret } from "kubernetes-models/v1/Secret";
import { Service } from "kubernetes-models/v1/Service";
import fc from "fast-check";
import { parse, parseAllDocuments } from "yaml";
import { parseConfig } from "../../src/config/config.ts";
import { VARIABLES } from "../../src/config/variables.ts";
import { parseEnvFile } from "../../src/cli/env_file.ts";
import { ERRORS } from "../../src/errors.ts";
import { VERSION } from "../../src/identity.ts";
import { createDatabases } from "../support/databases.ts";
import { ENVIRONMENT_GENERATOR, testWith } from "../support/debian.ts";
import { startServer } from "../support/server.ts";

const DEPLOY = new URL("../../deploy/", import.meta.url).pathname;
const read = (name: string) => Deno.readTextFileSync(`${DEPLOY}${name}`);
/** Where the files of `deploy/` expect the program. */
const INSTALLED = "/usr/local/bin/marketing-data-service";

/** Maximum time in seconds that a process needs after SHUTDOWN_GRACE. */
const STOP_SECONDS = 12;

async function run(command: string, args: string[], cwd = DEPLOY) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd,
    env: { NO_COLOR: "1" },
  }).output();
  const decoder = new TextDecoder();
  return { code, said: decoder.decode(stdout) + decoder.decode(stderr) };
}

const UNITS = [
  "marketing-data-service.service",
  "marketing-data-load.service",
  "marketing-data-load.timer",
];

testWith(
  ["systemd-analyze"],
  "systemd accepts the units and rates their sandbox as safe",
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      for (const unit of UNITS) {
        // systemd checks that the program exists.
        const text = read(`systemd/${unit}`).replace(INSTALLED, "/bin/true");
        await Deno.writeTextFile(`${folder}/${unit}`, text);
      }
      const verified = await run(
        "systemd-analyze",
        ["verify", "--man=no", ...UNITS],
        folder,
      );
      assertEquals(verified, { code: 0, said: "" });
      for (const unit of UNITS.slice(0, 2)) {
        const { code, said } = await run("systemd-analyze", [
          "security",
          "--no-pager",
          "--offline=true",
          "--threshold=15",
          unit,
        ], folder);
        assertEquals(code, 0, said);
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("the units set only known variables, and a stop leaves time for SHUTDOWN_GRACE", () => {
  for (const unit of UNITS.slice(0, 2)) {
    const text = read(`systemd/${unit}`);
    for (const [, name] of text.matchAll(/^Environment=(\w+)=/gm)) {
      assert(name! in VARIABLES, name);
    }
  }
  const [, stop] = /^TimeoutStopSec=(\d+)$/m.exec(
    read("systemd/marketing-data-service.service"),
  )!;
  const grace = Number(VARIABLES.SHUTDOWN_GRACE.default);
  assert(Number(stop) >= grace + STOP_SECONDS);
  const names = read("env.example").split("\n")
    .filter((line) => /^\w/.test(line)).map((line) => line.split("=")[0]!);
  for (const name of names) assert(name in VARIABLES, name);
});

/** Returns the variables that systemd reads from a text. */
function readWithSystemd(text: string, folder: string) {
  Deno.mkdirSync(`${folder}/environment.d`, { recursive: true });
  Deno.writeTextFileSync(`${folder}/environment.d/x.conf`, text);
  const { code, stdout } = new Deno.Command(ENVIRONMENT_GENERATOR, {
    env: { XDG_CONFIG_HOME: folder },
  }).outputSync();
  assertEquals(code, 0);
  const lines = new TextDecoder().decode(stdout).trimEnd().split("\n");
  return lines.map((line) => {
    const [, name, value] = /^(\w+)=(?:"([^]*)"|[^]*)$/.exec(line)!;
    return [
      name!,
      value?.replaceAll(
        /\\(.)/g,
        (_, c) => ({ n: "\n", t: "\t", r: "\r" })[c as "n"] ?? c,
      ) ?? line.slice(name!.length + 1),
    ] as const;
  }).filter(isCompared);
}

/** Returns whether a variable is of the test. The reader leaves out some empty ones. */
const isCompared = ([name, value]: readonly [string, string]) =>
  /^V\d$/.test(name) && value !== "";

testWith(
  [ENVIRONMENT_GENERATOR],
  "--env-file and EnvironmentFile= of systemd give a file the same meaning",
  async () => {
    const folder = await Deno.makeTempDir();
    const values = fc.string({
      // Not $, because only this reader of systemd expands variables.
      unit: fc.constantFrom(..."aé \t\n\\'\"#;=`"),
      maxLength: 15,
    });
    try {
      fc.assert(
        fc.property(fc.array(values, { maxLength: 9 }), (values) => {
          const text = values.map((value, n) => `V${n}=${value}`).join("\n");
          // systemd 252 continues a comment after a backslash, and 254 does not.
          fc.pre(!/[#;].*\\$/m.test(text));
          assertEquals(
            [...parseEnvFile(text)].filter(isCompared).sort(),
            readWithSystemd(text, folder).toSorted(),
            JSON.stringify(text),
          );
        }),
        { numRuns: 100 },
      );
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("the crontab line runs unchanged", async () => {
  const line = read("cron/marketing-data-service").split("\n")
    .find((line) => /^[*\d]/.test(line))!;
  const words = line.split(" ");
  assert(parseCrontab(words.slice(0, 5).join(" ")));
  await using db = await createDatabases({ rows: { deals: 2, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    const env = Object.entries(db.environment)
      .map(([name, value]) =>
        `${name}="${value!.replaceAll(/["\\`$]/g, "\\$&")}"`
      ).join("\n");
    await Deno.writeTextFile(`${folder}/env`, env);
    const binary = Deno.env.get("MARKETING_DATA_SERVICE_BIN");
    const command = words.slice(6).join(" ")
      .replace(
        INSTALLED,
        binary ?? `${Deno.execPath()} task --quiet --cwd ${DEPLOY}.. cli`,
      )
      .replace("/etc/marketing-data-service/env", `${folder}/env`);
    assertEquals(await run("sh", ["-c", command]), { code: 0, said: "" });
    const [row] = await db.warehouse.unsafe(
      "select count(*)::int as rows from m_data.marketing_qualified_lead",
    );
    assertEquals(row!.rows, 3);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

const MODELS = {
  ConfigMap,
  Secret,
  Deployment,
  Service,
  CronJob,
  PodDisruptionBudget,
  NetworkPolicy,
};

/** Returns the objects that kubectl would apply, with the CronJob. */
async function kubernetesObjects() {
  const folder = await Deno.makeTempDir();
  try {
    await run("cp", ["-R", `${DEPLOY}kubernetes/.`, folder]);
    await run("rm", ["-rf", `${folder}/secrets`]);
    await Deno.mkdir(`${folder}/secrets`);
    for (const name of ["olist_password", "dwh_password", "api_token"]) {
      await Deno.writeTextFile(`${folder}/secrets/${name}`, name);
    }
    const file = `${folder}/kustomization.yaml`;
    const text = await Deno.readTextFile(file);
    await Deno.writeTextFile(file, text.replace("# - cronjob", "- cronjob"));
    const { code, said } = await run("kubectl", ["kustomize", folder]);
    assertEquals(code, 0, said);
    return new Map(
      parseAllDocuments(said).map((d) => d.toJS()).map((o) => [o.kind, o]),
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

testWith(
  ["kubectl"],
  "the Kubernetes objects match their schemas and configure the service",
  async (t) => {
    const objects = await kubernetesObjects();
    await t.step("schemas", () => {
      assertEquals([...objects.keys()].sort(), Object.keys(MODELS).sort());
      for (const [kind, object] of objects) {
        const Model = MODELS[kind as keyof typeof MODELS];
        assertEquals(object.apiVersion, new Model().apiVersion);
        new Model(object).validate();
      }
      const wrong = structuredClone(objects.get("CronJob"));
      wrong.spec.concurrencyPolicy = 5;
      assertThrows(() => new CronJob(wrong).validate(), "concurrencyPolicy");
    });
    const config = objects.get("ConfigMap");
    const deployment = objects.get("Deployment");
    const cronjob = objects.get("CronJob").spec;
    const pod = deployment.spec.template;
    const job = cronjob.jobTemplate.spec;
    await t.step("variables and secret files", () => {
      const files: string[] = [];
      for (const name of Object.keys(config.data)) {
        assert(name in VARIABLES, name);
      }
      parseConfig(config.data, (path) => {
        files.push(path);
        return `a-secret-that-is-long-enough-${files.length}`;
      });
      assertEquals(
        files.map((path) => path.split("/").at(-1)).sort(),
        Object.keys(objects.get("Secret").data).sort(),
      );
      for (
        const { containers: [container], volumes } of [
          pod.spec,
          job.template.spec,
        ]
      ) {
        const [from] = container.envFrom;
        assertEquals(from.configMapRef.name, config.metadata.name);
        for (const file of files) {
          const mount = container.volumeMounts.find((
            m: { mountPath: string },
          ) => file.startsWith(`${m.mountPath}/`));
          const volume = volumes.find((v: { name: string }) =>
            v.name === mount.name
          );
          assertEquals(
            volume.secret?.secretName,
            objects.get("Secret").metadata.name,
            file,
          );
        }
        assert(container.securityContext.readOnlyRootFilesystem);
        assert(container.resources.limits.memory);
        const { version } = JSON.parse(
          Deno.readTextFileSync(`${DEPLOY}../deno.json`),
        );
        assertEquals(container.image, `marketing-data-service:${version}`);
      }
    });
    await t.step("a stop leaves time for a running load", () => {
      const sleep = pod.spec.containers[0].lifecycle.preStop.sleep.seconds;
      const grace = pod.spec.terminationGracePeriodSeconds;
      const needed = Number(config.data.SHUTDOWN_GRACE) + STOP_SECONDS + sleep;
      assert(sleep > 0 && grace >= needed, `${grace} s`);
    });
    await t.step("the selectors select the pods", () => {
      const { labels } = pod.metadata;
      for (
        const selected of [
          deployment.spec.selector.matchLabels,
          objects.get("Service").spec.selector,
          objects.get("PodDisruptionBudget").spec.selector.matchLabels,
          pod.spec.topologySpreadConstraints[0].labelSelector.matchLabels,
        ]
      ) assertEquals(selected, labels);
      const [{ key, values }] =
        objects.get("NetworkPolicy").spec.podSelector.matchExpressions;
      assertEquals(values, [labels[key], job.template.metadata.labels[key]]);
    });
    await t.step(
      "the CronJob runs one load at a time, limits its duration, and ignores a busy one",
      () => {
        assertEquals(cronjob.concurrencyPolicy, "Forbid");
        assert(job.activeDeadlineSeconds > 0);
        const [busy] = job.podFailurePolicy.rules;
        assertEquals(busy.action, "Ignore");
        assertEquals(busy.onExitCodes.values, [ERRORS.busy.exit]);
      },
    );
  },
);

testWith(
  ["promtool"],
  "the alerts are valid and pass their tests",
  async () => {
    for (
      const words of [["check", "rules", "alerts.yml"], [
        "test",
        "rules",
        "alerts_test.yml",
      ]]
    ) {
      const { code, said } = await run(
        "promtool",
        words,
        `${DEPLOY}prometheus`,
      );
      assertEquals(code, 0, said);
    }
  },
);

interface Panel {
  readonly id: number;
  readonly title: string;
  readonly targets: readonly { readonly expr: string }[];
  readonly gridPos: { x: number; y: number; w: number; h: number };
}

function dashboard(): { panels: readonly Panel[] } {
  return JSON.parse(read("grafana/dashboard.json"));
}

const expressionsOfDashboard = () =>
  dashboard().panels.flatMap((panel) => panel.targets.map((t) => t.expr));

testWith(
  ["promtool"],
  "the expressions of the dashboard are valid PromQL",
  async () => {
    const rules = expressionsOfDashboard().map((expr, index) => ({
      record: `expression:${index}`,
      // The values that Grafana inserts.
      expr: expr.replaceAll(/\$__\w+/g, "5m"),
    }));
    const file = await Deno.makeTempFile({ suffix: ".yml" });
    try {
      await Deno.writeTextFile(
        file,
        JSON.stringify({ groups: [{ name: "dashboard", rules }] }),
      );
      const { code, said } = await run("promtool", ["check", "rules", file]);
      assertEquals(code, 0, said);
    } finally {
      await Deno.remove(file);
    }
  },
);

Deno.test("the panels of the dashboard do not overlap and have unique ids", () => {
  const { panels } = dashboard();
  assertEquals(new Set(panels.map((p) => p.id)).size, panels.length);
  for (const { title, gridPos: a } of panels) {
    assert(a.x + a.w <= 24, `${title} is beyond the edge`);
    for (const { title: other, gridPos: b } of panels) {
      const isApart = title === other || a.x + a.w <= b.x ||
        b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
      assert(isApart, `${title} overlaps ${other}`);
    }
  }
});

testWith(
  ["promtool"],
  "promtool accepts /metrics, which has every metric and label of the alerts and the dashboard",
  async () => {
    const groups: { rules: { expr: string }[] }[] =
      parse(read("prometheus/alerts.yml")).groups;
    const expressions = [
      ...groups.flatMap((group) => group.rules.map((rule) => rule.expr)),
      ...expressionsOfDashboard(),
    ];
    await using db = await createDatabases({ rows: { deals: 2, leads: 2 } });
    await using server = await startServer(db, {
      EVENT_PUBLISHER_TYPE: "file",
    });
    const metrics = async () => await (await server.fetch("/metrics")).text();
    // Without a success, 0 would be one in 1970.
    const unloaded = await metrics();
    assert(!/^marketing_data_last_success_timestamp_seconds/m.test(unloaded));
    for (
      const line of [
        `marketing_data_build_info{version="${VERSION}",deno="${Deno.version.deno}"} 1`,
        'marketing_data_runs_total{status="failure",trigger="schedule"} 0',
      ]
    ) assertStringIncludes(unloaded, `${line}\n`);
    for (
      const [name, min, max] of [
        [
          "process_start_time_seconds",
          Date.now() / 1000 - 600,
          Date.now() / 1000,
        ],
        ["process_resident_memory_bytes", 1e7, 1e9],
        ["process_cpu_seconds_total", 0.01, 600],
      ] as const
    ) {
      const value = Number(
        new RegExp(`^${name} (\\S+)$`, "m").exec(unloaded)?.[1],
      );
      assert(value > min && value < max, `${name} is ${value}`);
    }
    await (await server.fetch("/load", { method: "POST" })).body?.cancel();
    await db.source.unsafe("drop table marketing.closed_deals");
    await (await server.fetch("/load", { method: "POST" })).body?.cancel();
    const text = await metrics();
    const file = await Deno.makeTempFile();
    try {
      await Deno.writeTextFile(file, text);
      const command = `promtool check metrics < ${file}`;
      assertEquals(await run("sh", ["-c", command]), { code: 0, said: "" });
    } finally {
      await Deno.remove(file);
    }
    const names = new Set<string>();
    for (const expression of expressions) {
      for (
        const [, name, labels] of expression.matchAll(
          /\b(marketing_data_\w+)(?:\{([^}]*)\})?/g,
        )
      ) {
        names.add(name!);
        const line = new RegExp(
          `^${name}(?:[{ ])${labels ? `(?=.*${labels})` : ""}`,
          "m",
        );
        assert(line.test(text), `${name}{${labels ?? ""}} is not at /metrics`);
      }
      for (const [, labels] of expression.matchAll(/ by \(([\w, ]+)\)/g)) {
        for (const label of labels!.split(", ")) {
          assert(
            text.includes(`${label}="`),
            `no metric has the label ${label}`,
          );
        }
      }
    }
    assert(names.size >= 7, `only ${names.size} metrics are used`);
  },
);
