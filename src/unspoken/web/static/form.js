// A strategy's settings, drawn from its schema.
import { el, fresh, problem } from "./dom.js";
import { changed, fieldsOf, parse, presetOf, show, sliderRange } from "./schema.js";

export class SettingsForm {
  /**
   * @param {HTMLElement} root is filled
   * @param {() => void} onChange is called after each change
   */
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.controls = new Map();
    this.problems = {};
  }

  /** Draw the form of a strategy; `values` override its defaults. */
  use(strategy, values = {}) {
    this.strategy = strategy;
    this.fields = fieldsOf(strategy);
    this.values = Object.fromEntries(this.fields.map((f) => [f.name, f.default]));
    this.problems = {};
    for (const field of this.fields) if (field.name in values) this.values[field.name] = values[field.name];
    this.controls.clear();
    const rows = this.fields.map((field) => this.row(field));
    this.root.replaceChildren(this.head(), ...rows);
    this.mark();
  }

  head() {
    const presets = Object.keys(this.strategy.presets || {});
    const reset = el("button", { type: "button", className: "quiet", onclick: () => this.fill({}) }, "Reset");
    if (!presets.length) return el("div", { className: "settings-head" }, el("span"), reset);
    const id = fresh("preset");
    this.preset = el("select", { id, onchange: () => this.fill(this.strategy.presets[this.preset.value] || {}) });
    this.preset.append(el("option", { value: "" }, "none"));
    for (const name of presets) this.preset.append(el("option", { value: name }, name));
    return el("div", { className: "settings-head" }, el("label", { for: id }, "Preset"), this.preset, reset);
  }

  /** Set the fields to these values, and all others to their defaults. */
  fill(values) {
    this.use(this.strategy, values);
    this.onChange();
  }

  row(field) {
    const id = fresh("field");
    const error = el("span", { className: "problem", id: `${id}-error` });
    const control = this.control(field, id);
    const name = el("label", { for: id }, field.name);
    const parts = [name, control];
    let slider = null;
    const range = sliderRange(field);
    if (range) {
      slider = el("input", {
        type: "range", min: range.minimum, max: range.maximum, step: range.step, tabIndex: -1,
        "aria-label": `${field.name}, slider`, value: this.values[field.name] ?? field.minimum,
        oninput: () => {
          control.value = slider.value;
          this.read(field, control, slider);
        },
      });
      parts.push(slider);
    }
    parts.push(error, el("span", { className: "help", id: `${id}-help` }, field.help));
    control.setAttribute("aria-describedby", `${id}-error ${id}-help`);
    control.addEventListener(control.tagName === "INPUT" && control.type !== "checkbox" ? "input" : "change", () =>
      this.read(field, control, slider));
    this.controls.set(field.name, { control, error, field });
    const row = el("div", { className: `field ${field.type}${slider ? " slides" : ""}` }, ...parts);
    this.controls.get(field.name).row = row;
    return row;
  }

  control(field, id) {
    const value = this.values[field.name];
    if (field.type === "enum") {
      const select = el("select", { id });
      if (field.nullable) select.append(el("option", { value: "" }, "not set"));
      for (const option of field.values) select.append(el("option", { value: String(option) }, String(option)));
      select.value = value === null ? "" : String(value);
      return select;
    }
    if (field.type === "boolean") return el("input", { id, type: "checkbox", checked: Boolean(value) });
    const props = { id, type: "text", value: show(field, value), autocomplete: "off" };
    if (field.nullable || value === null) props.placeholder = "not set";
    if (field.type === "integer" || field.type === "number") {
      props.inputMode = field.type === "integer" ? "numeric" : "decimal";
      Object.assign(props, { type: "number", step: field.type === "integer" ? 1 : "any" });
      if (field.minimum !== null) props.min = field.minimum;
      if (field.maximum !== null) props.max = field.maximum;
    }
    return el("input", props);
  }

  read(field, control, slider) {
    const text = control.type === "checkbox" ? control.checked : control.value;
    const bad = control.validity && control.validity.badInput;
    const { value, problem: sentence } = bad ? { problem: "This must be a number." } : parse(field, text);
    if (sentence) this.problems[field.name] = [sentence];
    else {
      delete this.problems[field.name];
      this.values[field.name] = value;
      if (slider && value !== null && slider.value !== String(value)) slider.value = value;
    }
    this.explain({ [field.name]: this.problems[field.name] });
    this.mark();
    this.onChange();
  }

  /** Which fields differ from their defaults, and which preset this is. */
  mark() {
    const differs = changed(this.fields, this.values);
    for (const [name, { row }] of this.controls) row.classList.toggle("changed", name in differs);
    if (this.preset && this.preset.isConnected) {
      this.preset.value = presetOf(this.strategy.presets, this.fields, this.values);
    }
  }

  /** Sentences beside fields: {name: [sentence]}; whether there was any. */
  explain(errors) {
    let any = false;
    for (const [name, sentences] of Object.entries(errors)) {
      const entry = this.controls.get(name);
      if (!entry) continue;
      problem(entry.control, entry.error, sentences);
      any ||= Boolean(sentences && sentences.length);
    }
    return any;
  }

  /** Take back what the server said. */
  clearErrors() {
    for (const [name, { control, error }] of this.controls) problem(control, error, this.problems[name]);
  }

  get valid() {
    return Object.keys(this.problems).length === 0;
  }

  /** What is sent: only what is not the default. */
  get changes() {
    return changed(this.fields, this.values);
  }

  focusFirstError() {
    const first = this.root.querySelector("[aria-invalid=true]");
    if (first) first.focus();
  }
}
