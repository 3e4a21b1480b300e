// Paths are relative, so that the page also works behind a proxy's prefix.
const SHOWN_CLASSES = 10;
const SIMILAR = 6;
const RETRY_MS = 5000;
const TOKEN = "twinlens-token";
const FITS = { stretch: "", pad: ", padded", crop: ", the centre" };
const SCORES = { macro_f1: "Macro F1", roc_auc: "ROC AUC" };
const TITLES = { 0: "No connection", 401: "No access", 403: "No access", 429: "The service is busy", 503: "The service is not ready" };

const $ = (id) => document.getElementById(id);
const show = (id, visible) => { $(id).hidden = !visible; };
let card = null; // the last reply of /model
let predicting = new AbortController(); // aborts the request for the previous image,
let explaining = new AbortController(); // and for the previous class
let searching = new AbortController();
let again = loadCard; // what to repeat when a token has been entered

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the service does not answer; it may be starting, stopped or out of reach");
  }
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  throw new Refused(reply.status, body?.error?.message ?? `the service answered with status ${reply.status}`);
}

function post(path, file, { signal }) {
  const form = new FormData();
  form.append("image", file);
  return ask(path, { method: "POST", body: form, signal });
}

function complain(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  const refusedToken = error.status === 401 && sessionStorage.getItem(TOKEN);
  $("alert-title").textContent = TITLES[error.status] ?? (error.status < 500 ? "This was not accepted" : "The service failed");
  $("alert-text").textContent = sentence(error.message);
  show("alert", error.status !== 401 || refusedToken);
  show("access", error.status === 401);
  if (error.status === 401) $("token").focus();
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => capital(text) + (/[.!?]$/.test(text) ? "" : ".");

// 0.9996 is not 100 %, and 0.0002 is not 0 %.
function percent(probability) {
  if (probability > 0.999) return "> 99.9 %";
  if (probability < 0.001) return "< 0.1 %";
  return `${(probability * 100).toFixed(1)} %`;
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

async function classify(file) {
  predicting.abort();
  explaining.abort();
  searching.abort();
  const asking = predicting = new AbortController();
  again = () => classify(file);
  show("alert", false);
  show("answer", false);
  showImage(file);
  tell("The model looks at it …");
  try {
    const answer = await (await post("predict", file, asking)).json();
    // Limits and costs are those of the model that answered.
    if (answer.model_version !== card?.version) await loadCard();
    if (asking.signal.aborted) return;
    showAnswer(answer, file);
    offerSimilar(file);
    await explain(file, answer.label);
  } catch (error) {
    if (error.name !== "AbortError") tell("No answer.");
    complain(error);
  }
}

// Aloud and in sight; once the answer itself is in sight, only aloud.
function tell(text, answered = false) {
  $("status").textContent = text;
  $("status").classList.toggle("said", answered);
}

function showImage(file) {
  URL.revokeObjectURL($("photo").src);
  $("photo").removeAttribute("width");
  $("photo").src = URL.createObjectURL(file);
  show("empty", false);
  show("shown", true);
  show("photo", true);
  show("unseen", false);
  show("heat", false);
  show("overlay", false);
  show("why", false);
  show("near", false);
  $("choose").textContent = "Choose another image";
}

$("photo").onload = ({ target }) => {
  const enlarge = Math.ceil(256 / Math.max(target.naturalWidth, target.naturalHeight));
  target.classList.toggle("tiny", enlarge > 1);
  if (enlarge > 1) target.width = target.naturalWidth * enlarge;
};
$("photo").onerror = () => {
  show("photo", false);
  show("unseen", true);
};

// 0.13, and 0.0012 without rounding it to nothing.
const threshold = (point) => `${Number((point.threshold * 100).toPrecision(3))} %`;

function showDecisions(decisions) {
  const points = card?.operating_points ?? [];
  $("decisions").replaceChildren(...Object.entries(decisions).map(([label, yes]) => {
    const point = points.find((other) => other.label === label);
    const limit = point ? ` its probability is ${yes ? "at least" : "below"} ${threshold(point)}` : "";
    const item = element("li", `${label}: ${yes ? "yes" : "no"}`, yes ? "yes" : "");
    item.append(element("span", limit, "hint"));
    return item;
  }));
  show("decided", Object.keys(decisions).length > 0);
}

// The expected cost of each action, as the service computes it; the probabilities have six decimals here.
function expectedCosts(probabilities) {
  const { actions, matrix } = card.costs;
  return Object.fromEntries(actions.map((action, column) => [
    action, card.classes.reduce((sum, name, row) => sum + (probabilities[name] ?? 0) * matrix[row][column], 0),
  ]));
}

function showCosts(answer) {
  show("costs", answer.least_cost !== undefined);
  $("least-cost").textContent = answer.least_cost ?? "";
  $("cost-hint").textContent = "";
  if (!answer.least_cost || !card?.costs) return;
  const costs = expectedCosts(answer.probabilities);
  const cost = (action) => Number(costs[action].toPrecision(3));
  const beside = answer.least_cost === answer.label ? "" : `, of ${answer.label} ${cost(answer.label)}`;
  $("cost-hint").textContent =
    `By the cost matrix of the model and the probabilities, its expected cost is ${cost(answer.least_cost)}${beside}.`;
}

function setHint(set, level) {
  if (set === null) return "This model has none: it was validated on too few images.";
  if (!set.length) return "It is empty: none of the classes is likely for an image unlike those of the training.";
  return `In ${level} of images like those it was validated on, the true class is in this set.`;
}

function showAnswer(answer, file) {
  $("label").textContent = answer.label;
  $("confidence").textContent = percent(answer.confidence);
  show("abstained", answer.abstained);
  show("unfamiliar", answer.unfamiliar === true);
  $("novelty").textContent = answer.unfamiliar
    ? `Its novelty is ${answer.novelty.toFixed(2)}${card?.familiarity ? `, the limit ${card.familiarity.threshold}` : ""}.` : "";
  showDecisions(answer.decisions ?? {});
  showCosts(answer);
  const level = card ? `${Math.round(card.calibration.level * 100)} %` : "most";
  $("set").textContent = answer.prediction_set?.join(", ") ?? "";
  $("set-hint").textContent = setHint(answer.prediction_set, level);
  // Sorted again: an object gives its names that are whole numbers first, in their order.
  const shares = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  $("classes").replaceChildren(...shares.map(([label, share], place) => {
    const button = element("button", "", answer.prediction_set?.includes(label) ? "in-set" : "");
    const bar = element("span", "", "bar");
    bar.append(element("span"));
    bar.firstChild.style.setProperty("--share", share);
    button.append(element("span", label, "name"), element("span", percent(share), "share"), bar);
    button.dataset.label = label;
    button.onclick = () => explain(file, label).catch(complain);
    const item = element("li");
    item.hidden = place >= SHOWN_CLASSES;
    item.append(button);
    return item;
  }));
  $("more").textContent = `Show all ${shares.length} classes`;
  show("more", shares.length > SHOWN_CLASSES);
  show("answer", true);
  const unsure = answer.abstained ? ", for a person to decide" : "";
  tell(`The model says ${answer.label}, ${percent(answer.confidence)}${unsure}.`, true);
}

async function explain(file, label) {
  explaining.abort();
  explaining = new AbortController();
  for (const button of $("classes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.label === label);
  }
  $("explaining").textContent = `Looking for what speaks for ${label} …`;
  show("why", true);
  show("explanation", false);
  try {
    const path = `explain?format=json&label=${encodeURIComponent(label)}`;
    showExplanation(await (await post(path, file, explaining)).json());
    $("explaining").textContent = "";
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    $("explaining").textContent = `No explanation: ${error.message}. Choose a class to try again.`;
  }
}

function showExplanation(explanation) {
  $("heat").src = `data:image/png;base64,${explanation.heat_png}`;
  $("fitted").src = `data:image/png;base64,${explanation.fitted_png}`;
  $("fitted").onload = ({ target }) => {
    $("fitted-size").textContent = `${target.naturalWidth} × ${target.naturalHeight} px`;
  };
  const drops = explanation.drops.flat();
  $("explained").textContent = explanationText(explanation.label, drops);
  $("heat").alt = $("explained").textContent;
  show("heat", true);
  show("overlay", true);
  show("explanation", true);
}

function explanationText(label, drops) {
  const [most, least] = [Math.max(...drops), Math.min(...drops)];
  const points = (share) => `${(Math.abs(share) * 100).toFixed(1)} points`;
  if (most >= 0.01) return `Covering one region at a time takes up to ${points(most)} from the probability of ${label}.`;
  const none = `No single region carries ${label}: covering any of ${drops.length}`;
  if (least > -0.01) return `${none} changes its probability by less than a point.`;
  return `${none} takes less than a point from its probability, and adds up to ${points(least)} to it.`;
}

function offerSimilar(file) {
  $("similar").replaceChildren();
  $("searching").textContent = "";
  $("look").onclick = () => findSimilar(file).catch(complain);
  show("look", true);
  show("near", Boolean(card?.neighbours));
}

async function findSimilar(file) {
  searching.abort();
  searching = new AbortController();
  $("searching").textContent = "Looking among the training images …";
  try {
    const found = await (await post(`similar?k=${SIMILAR}`, file, searching)).json();
    $("similar").replaceChildren(...found.similar.map(neighbour));
    $("searching").textContent = "Two training images of one class are about 1.4 apart.";
    show("look", false);
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    $("searching").textContent = sentence(error.message);
  }
}

function neighbour({ path, label, distance, picture }) {
  const item = element("li");
  if (picture) {
    const image = element("img");
    image.src = picture;
    image.alt = "";
    item.append(image);
  }
  item.append(element("span", label, "name"), element("span", `distance ${distance.toFixed(2)}`, "hint"), element("span", path, "hint"));
  return item;
}

async function loadCard() {
  try {
    const reply = await ask("model");
    card = await reply.json();
    showCard(reply.headers.get("ETag")?.replaceAll('"', "") ?? "");
    show("alert", false);
    show("access", false);
    show("forget", sessionStorage.getItem(TOKEN) !== null);
    show("links", sessionStorage.getItem(TOKEN) === null); // a link carries no token
  } catch (error) {
    complain(error);
    $("model").textContent = "No model answers";
    if (error.status !== 401) setTimeout(loadCard, RETRY_MS);
  }
}

function showCard(digest) {
  const { height, width, channels, fit } = card.preprocessing;
  $("model").textContent = `${card.name} · ${card.version}`;
  $("card-classes").replaceChildren(...card.classes.map((name) => element("li", name)));
  $("card-decisions").replaceChildren(...card.operating_points.map((point) =>
    element("li", `${point.label} from ${threshold(point)}: ${point.score} ${point.target} on validation images`)));
  show("card-decided", card.operating_points.length > 0);
  $("card-scores").replaceChildren(...Object.entries(card.scores).map(scoreRow));
  const facts = {
    Name: card.name,
    Version: card.version,
    Created: new Date(card.provenance.created).toLocaleString([], { dateStyle: "long", timeStyle: "short" }),
    Sees: `${width} × ${height} px, ${channels === 3 ? "colour" : "gray"}${FITS[fit]}`,
    "File, SHA-256": digest,
    "Data, digest": card.provenance.data_digest,
    Revision: card.provenance.git_revision ?? "unknown",
  };
  $("card-facts").replaceChildren(...Object.entries(facts).flatMap(([name, fact]) => [
    element("dt", name),
    element("dd", fact, /^[0-9a-f]{12,}$/.test(fact) ? "digest" : ""),
  ]));
  $("card-statement").textContent = card.statement ?? "";
  show("card-statement", card.statement !== null);
  $("learned").textContent = card.formats.length ? ` This model was trained on ${card.formats.join(", ")}.` : "";
  show("card", true);
}

function scoreRow([name, { value, interval }]) {
  const row = element("tr");
  const heading = element("th", SCORES[name] ?? capital(name.replaceAll("_", " ")));
  heading.scope = "row";
  const cell = element("td", value === null ? "undefined" : value.toFixed(3));
  if (interval) {
    cell.append(element("span", `  ${interval.map((end) => end.toFixed(3)).join(" to ")}`, "hint"));
    const track = element("span", "", "track");
    track.append(element("span"));
    track.firstChild.style.setProperty("--low", interval[0]);
    track.firstChild.style.setProperty("--high", interval[1]);
    cell.append(track);
  }
  row.append(heading, cell);
  return row;
}

function take(data) {
  const [file] = data.files;
  if (file) classify(file);
  else complain(new Refused(400, "that was no file; save the image first, then choose it here"));
}

for (const id of ["file", "camera"]) {
  $(id).onchange = ({ target }) => {
    if (target.files.length) classify(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  };
}
$("strength").oninput = ({ target }) => { $("heat").style.opacity = target.value / 100; };
$("more").onclick = () => {
  for (const item of $("classes").children) item.hidden = false;
  show("more", false);
};
$("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  show("access", false);
  loadCard();
  if (again !== loadCard) again();
};
$("forget").onclick = () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
};
document.onpaste = (event) => {
  if (event.target !== $("token")) take(event.clipboardData);
};
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
};
document.ondragleave = (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer);
};
show("photograph", navigator.maxTouchPoints > 0); // elsewhere `capture` would only open the same dialog again
loadCard();
