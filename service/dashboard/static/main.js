// Asks for a key, finds out whose it is, and shows what that key may see.

import { Api, ApiError } from "./api.js";
import { login } from "./login.js";
import { OperatorView } from "./operator_view.js";
import { Poll } from "./poll.js";
import { session } from "./session.js";
import { TenantView } from "./tenant_view.js";

const [who, pulse, leave, view] = ["who", "pulse", "leave", "view"].map((id) =>
  document.getElementById(id),
);
const REFUSED = [401, 403]; // the key was revoked, or its tenant is no admin any more

let closeView = () => {};

async function enter(key) {
  const api = new Api(key);
  try {
    const tenant = await api.get("/tenant");
    session.remember(key);
    open(api, tenant);
  } catch (error) {
    if (error instanceof ApiError) end(error.message);
    else ask(`The gateway cannot be reached: ${error.message}.`);
  }
}

function open(api, tenant) {
  const shown = tenant.is_admin ? new OperatorView(api) : new TenantView(api);
  const poll = new Poll(tell);
  closeView = () => {
    poll.stop();
    api.close();
  };
  const role = tenant.is_admin ? "operator" : `service class ${tenant.service_class}`;
  who.textContent = `${tenant.name}, ${role}`;
  leave.hidden = false;
  view.replaceChildren(shown.element);
  shown.start(poll);
}

/** Say whether what is shown is fresh; `error` is null when it is. */
function tell(error) {
  if (error instanceof ApiError && REFUSED.includes(error.status)) {
    end(error.message);
    return;
  }
  const text = error ? `Not fresh: ${error.message}` : "Live";
  pulse.className = error ? "bad" : "good";
  if (pulse.textContent !== text) pulse.textContent = text;
}

function end(problem) {
  session.forget();
  ask(problem);
}

function ask(problem) {
  closeView();
  for (const line of [who, pulse]) line.textContent = "";
  pulse.className = "";
  leave.hidden = true;
  view.replaceChildren(login(enter, problem));
}

leave.addEventListener("click", () => end());
if (session.key) enter(session.key);
else ask();
