/** Starts the service, as `cli.ts serve` does. */
import { main } from "./cli.ts";
// Names the packages of the service, so that Deno finds them without running it.
import "./src/serve.ts";

Deno.exit(await main(["serve", ...Deno.args]));
