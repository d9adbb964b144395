/** Starts the service, as `cli.ts serve` does. */
import { main } from "./cli.ts";

Deno.exit(await main(["serve", ...Deno.args]));
