// The form that asks for a key.

import { element } from "./element.js";

/** `enter(key)` is called with what was typed; `problem` is a sentence about the key before. */
export function login(enter, problem = "") {
  const field = element("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: "",
    placeholder: "sk-tandem-…",
  });
  const form = element(
    "form",
    { id: "login" },
    element("label", { for: "key" }, "Your key"),
    field,
    element("button", { type: "submit" }, "Look"),
    element(
      "p",
      { class: "hint" },
      "An admin's key shows the whole service; a tenant's key shows what is the tenant's. It stays " +
        "in this tab and is sent to this gateway only.",
    ),
    element("p", { role: "alert", class: "problem" }, problem),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    enter(field.value.trim());
  });
  queueMicrotask(() => field.focus());
  return form;
}
