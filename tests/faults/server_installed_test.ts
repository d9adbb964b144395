import { findInstalledPostgres } from "../../demo/postgres.ts";
import { skip } from "../support/measure.ts";
import { testStops } from "../support/server_stops.ts";

// A separate file, so that it runs in parallel with the other one.
const installed = findInstalledPostgres();
if (installed) testStops("immediate", installed);
else skip("stops of another server", "install the Debian package postgresql");
