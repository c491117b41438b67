// Two minutes of a number or two, as lines.

const POINTS = 120;

class Chart {
  constructor(canvas, output, shown) {
    this.canvas = canvas;
    this.output = output;
    this.shown = shown;
    this.points = [];
  }

  // Takes the next second's values; null where there was nothing to measure.
  push(...values) {
    this.points.push(values);
    if (this.points.length > POINTS) this.points.shift();
    const known = values.some((value) => value !== null);
    this.output.textContent = known ? values.map(this.shown).join(" / ") : "–";
    this.draw();
  }

  draw() {
    const { context, width, height } = prepared(this.canvas, 72);
    const colours = [colour("--first"), colour("--second")];
    const most = Math.max(...this.points.flat().map((value) => value ?? 0), 0);
    context.strokeStyle = colour("--line");
    context.strokeRect(0.5, 0.5, width - 1, height - 1);
    if (most === 0) return;
    const x = (index) => width - 4 - ((this.points.length - 1 - index) * (width - 8)) / (POINTS - 1);
    const y = (value) => height - 4 - (value / most) * (height - 20);
    for (let line = 0; line < this.points[0].length; line += 1) {
      context.strokeStyle = colours[line];
      context.lineWidth = 1.5;
      context.beginPath();
      let begun = false;
      this.points.forEach((values, index) => {
        const value = values[line];
        if (value === null) {
          begun = false;
        } else if (begun) {
          context.lineTo(x(index), y(value));
        } else {
          // A point alone is seen too.
          context.moveTo(x(index) - 1, y(value));
          context.lineTo(x(index), y(value));
          begun = true;
        }
      });
      context.stroke();
    }
    context.fillStyle = colour("--quiet");
    context.font = "10px system-ui, sans-serif";
    context.fillText(`most ${this.shown(most)}`, 6, 12);
  }
}
