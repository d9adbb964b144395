import { testStops } from "../support/server_stops.ts";

testStops("immediate");
testStops("fast");
