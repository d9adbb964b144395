import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  formatBytes,
  formatCount,
  formatDistance,
  formatQuantity,
  formatSeconds,
  printable,
  printableJson,
} from "./format.ts";

/** Characters that a terminal acts on or that hide in a line. */
const HARMFUL = [
  "\x00",
  "\x07",
  "\x1b",
  "\x7f",
  "\x85",
  "\x9b",
  "\u00ad",
  "\u061c",
  "\u200b",
  "\u200e",
  "\u202e",
  "\u2028",
  "\u2029",
  "\u2066",
  "\ufeff",
  "\ud800",
  "\ue000",
  "\u{e0041}",
];

Deno.test("printable() replaces every harmful character and keeps all others", () => {
  for (const character of HARMFUL) {
    const shown = printable(`a${character}b`);
    assert(!shown.includes(character), JSON.stringify(character));
  }
  assertEquals(printable("a\x9b31mb"), "a\\u{9b}31mb");
  assertEquals(printable(" a\r\n\tb "), "a b");
  const kept = "Größe дб 数 👩‍🚀 “…” − ✓ می‌خواهم";
  assertEquals(printable(kept), kept);
});

Deno.test("printableJson() changes no data", () => {
  fc.assert(fc.property(fc.json(), fc.string({ unit: "binary" }), (a, b) => {
    const json = JSON.stringify([JSON.parse(a), b, ...HARMFUL]);
    const shown = printableJson(json);
    assertEquals(JSON.parse(shown), JSON.parse(json));
    for (const character of HARMFUL.slice(2, -3)) {
      assert(!shown.includes(character));
    }
  }));
});

Deno.test("formatCount(), formatQuantity(), formatSeconds(), formatBytes() and formatDistance() print readable values", () => {
  assertEquals(
    [0, 1, 8000].map((count) => formatQuantity(count, "row")),
    ["0 rows", "1 row", "8,000 rows"],
  );
  assertEquals(
    [0, 999, 1000, 1234567].map(formatCount),
    ["0", "999", "1,000", "1,234,567"],
  );
  assertEquals(
    [0, 0.0002, 0.0042, 0.0995, 9.994, 59.94, 59.96, 200, 7500].map(
      formatSeconds,
    ),
    [
      "0 ms",
      "<1 ms",
      "4 ms",
      "0.10 s",
      "9.99 s",
      "59.9 s",
      "1 min 0 s",
      "3 min 20 s",
      "2 h 5 min",
    ],
  );
  assertEquals(
    [0, 903, 999.6, 197_000, 1_250_000, 9.99e14].map(formatBytes),
    ["0 B", "903 B", "1.0 kB", "197 kB", "1.3 MB", "999 TB"],
  );
  const now = new Date("2026-01-02T00:00:00Z");
  assertEquals(
    [0, -3, -59, -3600, -86400 * 2, 7200].map((seconds) =>
      formatDistance(new Date(now.getTime() + seconds * 1000), now)
    ),
    ["just now", "just now", "59 s ago", "1 h ago", "2 days ago", "in 2 h"],
  );
});
