/** The smallest Hono app: the baseline for the cheapest routes of the service. */
import { Hono } from "hono";

const app = new Hono();
app.get("/", (c) => c.json({ status: "live" }));

if (import.meta.main) {
  Deno.serve({ hostname: "127.0.0.1", port: Number(Deno.args[0]) }, app.fetch);
}
