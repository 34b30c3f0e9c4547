"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, text = "", className = "") => Object.assign(document.createElement(name), { textContent: text, className });
  const shown = (element) => element.getClientRects().length > 0;

  // Plots: a tooltip at the nearest mark of a pointer or at the one with the focus; arrow keys go from mark to mark.
  const tip = document.body.appendChild(make("div", "", "tip"));
  tip.hidden = true;
  let current = null;

  const center = (mark) => {
    const box = mark.querySelector("path").getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };

  const show = (mark) => {
    if (mark === current) return;
    current?.classList.remove("on");
    current = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    const [title, ...lines] = mark.dataset.lines.split("\n");
    tip.replaceChildren(make("b", title), ...lines.map((line) => make("span", line)));
    const [x, y] = center(mark);
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = y - tip.offsetHeight - 16;
    tip.style.left = `${scrollX + Math.max(8, Math.min(x - tip.offsetWidth / 2, room))}px`;
    tip.style.top = `${scrollY + (above > 8 ? above : y + 16)}px`;
  };

  for (const plot of all(".plot > svg")) {
    const marks = all(".point", plot);
    for (const mark of marks) {
      const title = mark.querySelector("title"); // its text is shown by us, and not by the browser too
      mark.dataset.lines = title.textContent;
      mark.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
      title.remove();
      mark.setAttribute("tabindex", "-1");
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", () => mark === current && show(null));
    }
    (plot.querySelector(".chosen") ?? marks[0]).setAttribute("tabindex", "0");

    const nearest = (event) => {
      const far = (mark) => Math.hypot(center(mark)[0] - event.clientX, center(mark)[1] - event.clientY);
      const [best] = marks.filter(shown).map((mark) => [far(mark), mark]).sort((a, b) => a[0] - b[0]);
      show(best && best[0] < 28 ? best[1] : null);
    };
    plot.parentElement.addEventListener("pointermove", nearest);
    plot.parentElement.addEventListener("click", nearest); // after a tap has moved the focus
    plot.parentElement.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
    plot.addEventListener("keydown", (event) => {
      const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const there = marks.filter(shown);
      if (!turn || !there.length) return;
      event.preventDefault();
      const next = there[(there.indexOf(document.activeElement) + turn + there.length) % there.length];
      for (const mark of marks) mark.setAttribute("tabindex", mark === next ? "0" : "-1");
      next.focus();
    });
  }
  addEventListener("keydown", (event) => event.key === "Escape" && show(null));
  addEventListener("pointerdown", (event) => event.target.closest(".plot") || show(null));
  addEventListener("resize", () => show(null));

  // Tables: a heading sorts, first up and then down; what has no number stays at the end.
  for (const table of all("table.sortable")) {
    const [body] = table.tBodies;
    all("th[data-sort]", table).forEach((head) => {
      const key = (row) => {
        const cell = row.cells[head.cellIndex];
        if (head.dataset.sort === "number") return "value" in cell.dataset ? Number(cell.dataset.value) : null;
        return (head.cellIndex === 0 ? row.dataset.sort : cell.textContent).toLowerCase();
      };
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        all("th[data-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [key(row), row]);
        const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
        rows.sort(([a], [b]) => (a === null ? 1 : b === null ? -1 : (down ? -1 : 1) * compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  addEventListener("beforeprint", () => all("details.finalist").forEach((folded) => (folded.open = true)));

  // Frames: a large view that switches between the pictures of a row in place.
  const viewer = document.body.appendChild(make("dialog", "", "viewer"));
  const open = (frames, at) => {
    const buttons = frames.map((frame, index) => {
      const button = make("button", frame.parentElement.querySelector("figcaption").textContent);
      button.addEventListener("click", () => open(frames, index));
      button.setAttribute("aria-pressed", String(index === at));
      return button;
    });
    const close = make("button", "close");
    close.addEventListener("click", () => viewer.close());
    const bar = make("div", "", "bar");
    bar.append(...buttons, close);
    const frame = frames[at].cloneNode(true);
    frame.removeAttribute("tabindex");
    viewer.replaceChildren(bar, frame, make("p", "Buttons and arrow keys switch in place: what jumps is what the setting changed."));
    viewer.onkeydown = (event) => {
      const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (turn) open(frames, (at + turn + frames.length) % frames.length);
    };
    if (!viewer.open) viewer.showModal();
    buttons[at].focus();
  };
  for (const row of all(".triple")) {
    const frames = all(".frame", row);
    frames.forEach((frame, index) => {
      frame.setAttribute("tabindex", "0");
      frame.setAttribute("role", "button");
      frame.addEventListener("click", () => open(frames, index));
      frame.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        open(frames, index);
      });
    });
  }
}
