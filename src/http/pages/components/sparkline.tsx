/** A small line without axes. */

/** Size of the line, in pixels. Its stylesheet class has the same size. */
const WIDTH = 66;
const HEIGHT = 16;

/** Maximum number of values that are drawn. */
export const MAX_POINTS = 12;

/** The values, oldest first, from zero to the largest of them. One value has no line. */
export function Sparkline({ values }: { values: readonly number[] }) {
  if (values.length < 2) return null;
  const peak = Math.max(...values) || 1;
  const step = WIDTH / (MAX_POINTS - 1);
  const heights = values.map((value) =>
    HEIGHT - 1 - Math.round(value / peak * (HEIGHT - 2))
  );
  const path = heights.map((height, i) => {
    // Relative steps are shorter. A minus separates numbers as well as a space.
    const move = i === 0 ? height : height - heights[i - 1]!;
    return i === 0
      ? `M${WIDTH - (values.length - 1) * step} ${move}l`
      : `${i > 1 ? " " : ""}${step}${move < 0 ? "" : " "}${move}`;
  }).join("");
  return (
    <svg>
      <path d={path} />
    </svg>
  );
}
