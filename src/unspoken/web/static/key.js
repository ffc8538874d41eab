// The dialog that asks for the server's key, and tries it before it lets go.
import { $, problem } from "./dom.js";
import { call, hasKey, setKey } from "./stream.js";

/** Ask for the key until the server takes one, or the user gives up; `then` is called when it was taken. */
export function askForKey(then) {
  const dialog = $("key");
  if (dialog.open) return;
  const input = $("key-value");
  const say = (sentence) => problem(input, $("key-error"), sentence ? [sentence] : []);
  say(hasKey() ? "The key that was given before is not the right one." : "");
  setKey("");
  input.value = "";
  let taken = false;
  $("key-form").onsubmit = async (event) => {
    event.preventDefault();
    const given = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
      say(given ? "A key has letters, digits and signs of ASCII, and no blanks." : "Type the key first.");
      return;
    }
    setKey(given);
    try {
      await call("/api/model-status");
    } catch (error) {
      setKey("");
      say(error.status === 401 ? "This is not the right key." : `${error.message} ${error.hint}`);
      input.select();
      return;
    }
    taken = true;
    dialog.close();
  };
  dialog.onclose = () => {
    input.value = "";
    $("general-error").textContent = taken ? "" : "Nothing runs here without the key. Run asks for it again.";
    if (taken) then();
  };
  dialog.showModal();
}
