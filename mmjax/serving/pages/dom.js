// Elements made of names, attributes and text: data never becomes markup.

/** An element; attributes that are false or null are left out, children are elements or texts. */
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Shows these children in place of what `id` holds. */
export function show(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

/** A list of terms and what they are; pairs without a second are left out. */
export function facts(pairs) {
  const told = pairs.filter(([, what]) => what != null && what !== "");
  return make("dl", { class: "facts" }, ...told.flatMap(([term, what]) => [make("dt", {}, term), make("dd", {}, what)]));
}

/** A text that is at most so long. */
export function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
