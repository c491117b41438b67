// Numbers as people read them. Pure.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const count = (value) => (value < 100 ? short : whole).format(value);

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${count(value)} ${units[unit]}`;
}

function seconds(value) {
  if (value === null) return "–";
  if (value < 1e-3) return `${count(value * 1e6)} µs`;
  return value < 1 ? `${short.format(value * 1e3)} ms` : `${short.format(value)} s`;
}

const several = (value, noun) => `${whole.format(value)} ${noun}${value === 1 ? "" : "s"}`;

// The time below which a part of what a histogram has counted lies, between the bounds of its bucket; null of nothing.
function percentile(bounds, counts, part) {
  const total = counts.reduce((sum, counted) => sum + counted, 0);
  let left = total * part;
  for (let bucket = 0; bucket < counts.length; bucket += 1) {
    if (counts[bucket] > 0 && counts[bucket] >= left) {
      const from = bucket > 0 ? bounds[bucket - 1] : 0;
      const to = bounds[Math.min(bucket, bounds.length - 1)];
      return from + (to - from) * (left / counts[bucket]);
    }
    left -= counts[bucket];
  }
  return null;
}
