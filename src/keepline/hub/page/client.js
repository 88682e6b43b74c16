// Made from web/client by `npm run page`; change it there.
/** What this client says when the hub did not answer in time. */
const NO_ANSWER = 4e3;
/** What this client says to a frame that it does not read. */
const BAD_FRAME = 4001;
/** RFC 6455's codes after which the same would happen again, and the one that says that all is done. */
const FINAL = /* @__PURE__ */ new Set([
	1e3,
	1002,
	1003,
	1007,
	1008,
	1009,
	1010
]);
/**
* Whether to connect again after a close with this code.
*
* Below 3000 the transport speaks (RFC 6455): do not after a normal end or when what we sent was wrong, otherwise do,
* 1005 and 1006 (no code was sent) among them. From 3000 on the lower half of each thousand means "come
* back", the upper half "do not": 3000-3999 are the hub's, 4000-4999 an application's.
*/
function comesBack(code) {
	return code < 3e3 ? !FINAL.has(code) : code % 1e3 < 500;
}
// src/backoff.ts
/**
* The wait before a try, in milliseconds.
*
* @param failures - tries that failed since the last good connection, 0 for none.
* @param chance - evenly from 0 up to, not including, 1.
*/
function wait(backoff, failures, chance) {
	const room = backoff.least * 2 ** Math.min(failures, 30);
	return Math.min(backoff.most, backoff.least + chance * room);
}
// src/messages.ts
const CONTROL = /* @__PURE__ */ new Set([
	"welcome",
	"subscribed",
	"unsubscribed",
	"gap",
	"error",
	"expiring",
	"refreshed",
	"pong"
]);
const ABOUT_A_CHANNEL = /* @__PURE__ */ new Set([
	"subscribed",
	"unsubscribed",
	"gap"
]);
/** The messages of a frame; nothing that comes over the wire throws. */
function readFrame(text) {
	let whole;
	try {
		whole = JSON.parse(text);
	} catch {
		return {
			messages: [],
			bad: 1
		};
	}
	if (!Array.isArray(whole)) return {
		messages: [],
		bad: 1
	};
	const messages = whole.filter(isMessage);
	return {
		messages,
		bad: whole.length - messages.length
	};
}
/** Whether it has a place in a channel. */
function isData(message) {
	return "offset" in message;
}
/** Whether it is about the connection or a subscription. */
function isControl(message) {
	return !isData(message) && CONTROL.has(message.type);
}
function isMessage(value) {
	if (!isRecord(value) || typeof value["type"] !== "string") return false;
	if (!("offset" in value)) return isControlShape(value);
	return typeof value["channel"] === "string" && typeof value["epoch"] === "string" && isOffset(value["offset"]) && isTextOrAbsent(value["id"]) && isTextOrAbsent(value["key"]) && (value["type"] !== "snapshot" || isSnapshotData(value["data"]));
}
function isControlShape(value) {
	const type = String(value["type"]);
	if (!isRecord(value["data"])) return false;
	return typeof value["channel"] === "string" || !ABOUT_A_CHANNEL.has(type);
}
function isSnapshotData(data) {
	return isRecord(data) && Array.isArray(data["items"]) && data["items"].every(isItem);
}
function isItem(item) {
	return isRecord(item) && typeof item["type"] === "string" && typeof item["key"] === "string" && isOffset(item["offset"]) && isTextOrAbsent(item["id"]) && isTextOrAbsent(item["timestamp"]);
}
function isTextOrAbsent(value) {
	return value === void 0 || typeof value === "string";
}
function isOffset(value) {
	return Number.isSafeInteger(value) && Number(value) >= 0;
}
function isRecord(value) {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
// src/heartbeat.ts
var Heartbeat = class {
	/** When anything was last heard; 0 before the first. */
	heardAt = 0;
	#settings;
	#asked;
	#answered;
	#spared = false;
	constructor(settings) {
		this.#settings = settings;
	}
	get deadline() {
		return this.#asked?.by ?? this.heardAt + this.#settings.heartbeat;
	}
	/** The connection is gone. */
	reset() {
		this.#asked = void 0;
		this.#answered = void 0;
		this.#spared = false;
	}
	heard(now) {
		this.heardAt = now;
		this.#spared = false;
		this.#answered = this.#asked ?? this.#answered;
		this.#asked = void 0;
	}
	/** A ping is to be sent under this id; false when one is under way. */
	ask(id, now) {
		if (this.#asked !== void 0) return false;
		this.#asked = {
			id,
			at: now,
			by: now + this.#settings.pongTimeout
		};
		return true;
	}
	/** What a look at the clock says. */
	look(now) {
		const asked = this.#asked;
		if (asked === void 0) return now >= this.deadline ? "ask" : "fine";
		if (now < asked.by) return "fine";
		if (this.#spared || now - asked.by < this.#settings.pongTimeout) return "dead";
		this.#asked = void 0;
		this.#spared = true;
		return "ask";
	}
	/** A pong has come: the way there and back in ms, if it answers the newest ping. */
	roundTrip(id, now) {
		const answered = this.#answered;
		if (answered === void 0 || answered.id !== id) return void 0;
		this.#answered = void 0;
		return now - answered.at;
	}
};
// src/renewal.ts
/** A newer token for a live connection: one question at a time, a bounded number of times. */
const MOST_TRIES = 6;
var Renewal = class {
	#backoff;
	#chance;
	#running = false;
	#tries = 0;
	#sent;
	#at;
	constructor(backoff, chance) {
		this.#backoff = backoff;
		this.#chance = chance;
	}
	/** Whether a newer token is wanted. */
	get running() {
		return this.#running;
	}
	/** When to ask its source again; undefined while nothing is due. */
	get deadline() {
		return this.#at;
	}
	/** A newer token is wanted; false when that was known. */
	begin() {
		if (this.#running) return false;
		this.#running = true;
		this.#tries = 0;
		return true;
	}
	/** It has come, cannot come, or the connection is gone. */
	end() {
		this.#running = false;
		this.#sent = void 0;
		this.#at = void 0;
	}
	/** Whether the source is to be asked again now. */
	due(now) {
		if (this.#at === void 0 || now < this.#at) return false;
		this.#at = void 0;
		return true;
	}
	/** The source has given a newer token: it may be sent, under this id, unless one is under way. */
	send(id) {
		if (!this.#running || this.#sent !== void 0) return false;
		this.#sent = id;
		this.#at = void 0;
		return true;
	}
	/** The source had none, or the old one: ask again later. */
	later(now) {
		this.#sent = void 0;
		this.#tries += 1;
		if (this.#tries >= MOST_TRIES) this.end();
		else this.#at = now + wait(this.#backoff, this.#tries, this.#chance());
	}
	/** The hub refuses what was sent under this id. */
	refused(id, now) {
		if (this.#sent === id) this.later(now);
	}
};
// src/recent.ts
/** The ids that were seen last, a bounded number of them. */
var RecentIds = class {
	most;
	#ids = /* @__PURE__ */ new Set();
	constructor(most) {
		this.most = most;
	}
	/** Remember an id; false when it was known. The oldest leaves when there are too many. */
	add(id) {
		if (this.#ids.has(id)) return false;
		this.#ids.add(id);
		if (this.#ids.size > this.most) for (const oldest of this.#ids) {
			this.#ids.delete(oldest);
			break;
		}
		return true;
	}
};
// src/subscription.ts
/**
* What a client knows of one channel: whether it is subscribed, where it is, and which messages are new.
*
* Invariants: a message is given out once per epoch and offset, and once per id; a hole that the hub did not announce is
* found; what comes before the hub's `subscribed` belongs to an earlier subscription and does not count.
*/
const STALE = {
	fresh: false,
	conflated: 0,
	hole: void 0,
	items: []
};
var Subscription = class {
	name;
	standing = "wanted";
	policy;
	position;
	/** The id of the request whose answer is awaited. */
	asked;
	/** When to ask again, if no answer has come. */
	askBy = 0;
	/** When the newest data came, by the caller's clock; 0 before the first. */
	heardAt = 0;
	#expected;
	#anew = false;
	#ids;
	constructor(name, remembered) {
		this.name = name;
		this.#ids = new RecentIds(remembered);
	}
	/** The connection is gone: the place is kept, to resume from. */
	dropped() {
		if (this.standing === "asked" || this.standing === "on") this.standing = "wanted";
		else if (this.standing === "refused") this.standing = "wanted";
		this.asked = void 0;
	}
	/** Where the next subscription resumes; undefined for a snapshot. */
	get resumable() {
		return this.#anew ? void 0 : this.position;
	}
	/** The next subscription asks for a snapshot instead of what was missed; what was seen is still known. */
	beginAnew() {
		this.#anew = true;
		this.#expected = void 0;
	}
	/** The place is worth nothing: the hub counts differently. */
	forget() {
		this.position = void 0;
		this.#expected = void 0;
	}
	/** Whether this is the answer that is awaited, or word of a channel that the hub begins anew by itself. */
	expects(told) {
		return told.id === void 0 ? this.standing === "on" : told.id === this.asked;
	}
	/** The hub has answered. */
	began(told) {
		this.standing = "on";
		this.asked = void 0;
		this.policy = told.policy;
		if (!told.recovered) this.#expected = void 0;
	}
	/** The hub says what is missing. */
	announced(gap) {
		this.#expected = gap.to === null ? void 0 : gap.to + 1;
	}
	/** Judge a message, and move to it. */
	judge(message) {
		if (this.standing !== "on") return STALE;
		if (this.position?.epoch !== message.epoch) this.forget();
		const before = this.position?.offset;
		if (isSnapshot$1(message)) return this.#snapshot(message, before);
		if (before !== void 0 && message.offset <= before) return STALE;
		const verdict = {
			fresh: message.id === void 0 || this.#ids.add(message.id),
			conflated: this.#conflated(message.offset, before, 1),
			hole: this.#hole(message.offset),
			items: []
		};
		this.#moveTo(message);
		return verdict;
	}
	#snapshot(message, before) {
		if (message.data.partial && before !== void 0 && message.offset <= before) return STALE;
		const replaces = this.policy === "conflate";
		const known = replaces ? void 0 : before;
		const items = message.data.items.filter((item) => (known === void 0 || item.offset > known) && (item.id === void 0 || this.#ids.add(item.id) || replaces));
		const conflated = message.data.partial ? this.#conflated(message.offset, before, message.data.items.length) : 0;
		this.#moveTo(message);
		const { channel, epoch } = message;
		return {
			fresh: true,
			conflated,
			hole: void 0,
			items: items.map((item) => ({
				channel,
				epoch,
				timestamp: "",
				...item
			}))
		};
	}
	#conflated(offset, before, got) {
		if (this.policy !== "conflate" || before === void 0) return 0;
		return Math.max(0, offset - before - got);
	}
	#hole(offset) {
		const expected = this.#expected;
		if (this.policy === "conflate" || expected === void 0 || offset <= expected) return void 0;
		return {
			from: expected,
			to: offset - 1
		};
	}
	#moveTo(message) {
		this.position = {
			epoch: message.epoch,
			offset: message.offset
		};
		this.#expected = message.offset + 1;
		this.#anew = false;
	}
};
function isSnapshot$1(message) {
	return message.type === "snapshot";
}
// src/roster.ts
/**
* The channels that are wanted: which to ask for, which to give up.
*
* Invariants: a channel is asked for once until it is answered or overdue; nothing that may be dropped is asked for while
* nobody looks.
*/
const CHANNELS_PER_REQUEST = 64;
const TRY_AGAIN = /* @__PURE__ */ new Set([
	"unavailable",
	"rate_limited",
	"bad_resume"
]);
var Roster = class {
	subscriptions = /* @__PURE__ */ new Map();
	/** Nobody looks. */
	resting = false;
	#settings;
	#chance;
	constructor(settings, chance) {
		this.#settings = settings;
		this.#chance = chance;
	}
	/** When to ask again for what was not answered; undefined while nothing is due. */
	get deadline() {
		let first;
		for (const { standing, askBy } of this.subscriptions.values()) if (standing === "asked" && (first === void 0 || askBy < first)) first = askBy;
		return first;
	}
	/** Whether there is no channel to connect for. */
	get quiet() {
		return [...this.subscriptions.values()].every((each) => each.standing === "resting" || each.standing === "refused");
	}
	add(names) {
		for (const name of new Set(names)) {
			const known = this.subscriptions.get(name);
			if (known?.standing === "refused") known.standing = "wanted";
			if (known !== void 0) continue;
			const subscription = new Subscription(name, this.#settings.rememberedIds);
			if (this.resting) subscription.standing = "resting";
			this.subscriptions.set(name, subscription);
		}
	}
	/** Want these no more; those that the hub knows of. */
	remove(names) {
		const given = [];
		for (const name of new Set(names)) {
			if (knownToHub(this.subscriptions.get(name))) given.push(name);
			this.subscriptions.delete(name);
		}
		return given;
	}
	/** The connection is gone. */
	dropped() {
		for (const subscription of this.subscriptions.values()) subscription.dropped();
	}
	/** The requests for what is wanted, with an id of its own each. */
	requests(newId, now) {
		const wanted = this.#standing("wanted");
		const found = [];
		for (let start = 0; start < wanted.length; start += CHANNELS_PER_REQUEST) found.push(this.#request(wanted.slice(start, start + CHANNELS_PER_REQUEST), newId(), now));
		return found;
	}
	/** What was asked for and not answered is wanted anew. */
	overdue(now) {
		for (const subscription of this.#standing("asked")) if (now >= subscription.askBy) subscription.standing = "wanted";
	}
	/** The hub has answered a request with an error. */
	refused({ data, channel }, now) {
		for (const subscription of this.#standing("asked")) {
			if (subscription.asked !== data.id) continue;
			if (channel !== void 0 && channel !== subscription.name) continue;
			subscription.asked = void 0;
			if (data.code === "bad_resume") subscription.forget();
			if (TRY_AGAIN.has(data.code)) subscription.askBy = now + wait(this.#settings.backoff, 2, this.#chance());
			else subscription.standing = "refused";
		}
	}
	/** Nobody looks: keep only what must not be missed; those given up that the hub knows of. */
	rest() {
		this.resting = true;
		const given = [];
		for (const subscription of this.subscriptions.values()) {
			if (subscription.policy === "never" || subscription.standing === "refused") continue;
			if (knownToHub(subscription)) given.push(subscription.name);
			subscription.standing = "resting";
			subscription.asked = void 0;
			subscription.beginAnew();
		}
		return given;
	}
	/** Somebody looks. */
	wake() {
		this.resting = false;
		for (const subscription of this.#standing("resting")) subscription.standing = "wanted";
	}
	#request(wanted, id, now) {
		const resume = [];
		for (const subscription of wanted) {
			subscription.standing = "asked";
			subscription.asked = id;
			subscription.askBy = now + this.#settings.answerTimeout;
			const { name, resumable } = subscription;
			if (resumable !== void 0) resume.push([name, resumable]);
		}
		return {
			action: "subscribe",
			channels: wanted.map((subscription) => subscription.name),
			...resume.length > 0 ? { resume: Object.fromEntries(resume) } : {},
			id
		};
	}
	#standing(standing) {
		return [...this.subscriptions.values()].filter((each) => each.standing === standing);
	}
};
function knownToHub(subscription) {
	return subscription?.standing === "on" || subscription?.standing === "asked";
}
// src/settings.ts
const DEFAULTS = {
	autoReconnect: true,
	backoff: {
		least: 500,
		most: 2e4
	},
	settledAfter: 1e4,
	connectTimeout: 15e3,
	heartbeat: 2e4,
	pongTimeout: 1e4,
	answerTimeout: 1e4,
	hiddenAfter: 5e3,
	longestFrame: 16777216,
	rememberedIds: 4096,
	fixedToken: false,
	rate: null,
	waitsForNetwork: true
};
// src/stats.ts
function newStats() {
	return {
		connections: 0,
		retries: 0,
		frames: 0,
		messages: 0,
		conflated: 0,
		gaps: 0,
		missed: 0,
		duplicates: 0,
		late: 0,
		dropped: 0,
		malformed: 0,
		errors: 0,
		roundTrip: void 0
	};
}
// src/link.ts
/**
* When to connect, what to say, what to pass on: the client without sockets, clock or timers.
*
* Every input takes `now` in milliseconds of a clock that only goes forward, and leaves effects to be carried out, in
* order, by `take()`; `deadline` says when to call `tick`. Invariants: events of an attempt that was given up change
* nothing; one token is asked for at a time; whatever a hub says, nothing throws.
*/
const TOKEN = /^[A-Za-z0-9_.~+-]+$/;
var Link = class {
	stats = newStats();
	#settings;
	#chance;
	#roster;
	#heartbeat;
	#renewal;
	#effects = [];
	#state = "closed";
	#phase = "idle";
	#attempt = 0;
	#failures = 0;
	#first = true;
	#requests = 0;
	#retryAt = 0;
	#openBy = 0;
	#liveSince = 0;
	#hidden = false;
	#hideAt;
	#offline = false;
	#token = "";
	#rate;
	constructor(settings = {}, chance = Math.random) {
		this.#settings = {
			...DEFAULTS,
			...settings
		};
		this.#chance = chance;
		this.#roster = new Roster(this.#settings, chance);
		this.#heartbeat = new Heartbeat(this.#settings);
		this.#renewal = new Renewal(this.#settings.backoff, chance);
		this.#rate = this.#settings.rate;
	}
	get state() {
		return this.#state;
	}
	/** The connection attempt whose events count. */
	get attempt() {
		return this.#attempt;
	}
	/** When anything was last heard of the hub, by the clock of `now`; 0 before the first. */
	get heardAt() {
		return this.#heartbeat.heardAt;
	}
	get subscriptions() {
		return this.#roster.subscriptions;
	}
	/** What is to be done, in this order; the list is empty afterwards. */
	take() {
		const effects = this.#effects;
		this.#effects = [];
		return effects;
	}
	/** When to call `tick`; undefined while nothing is due. */
	get deadline() {
		const times = [this.#phase === "idle" ? void 0 : this.#hideAt, ...this.#due()].filter((at) => at !== void 0);
		return times.length > 0 ? Math.min(...times) : void 0;
	}
	#due() {
		switch (this.#phase) {
			case "waiting": return [this.#held() ? void 0 : this.#retryAt];
			case "opening": return [this.#openBy];
			case "live": return [
				this.#heartbeat.deadline,
				this.#renewal.deadline,
				this.#roster.deadline
			];
			default: return [];
		}
	}
	connect() {
		if (this.#phase !== "idle") return;
		this.#failures = 0;
		this.#first = true;
		if (this.#roster.resting && this.#roster.quiet) this.#rest("the page is hidden");
		else this.#dial();
	}
	close(code = 1e3, reason = "") {
		if (this.#phase === "opening" || this.#phase === "live") this.#shut(code, reason);
		this.#leave("idle");
		this.#become("closed", {
			code,
			reason
		});
	}
	subscribe(names, now) {
		this.#roster.add(names);
		this.#ask(now);
	}
	unsubscribe(names) {
		this.#giveUp(this.#roster.remove(names));
	}
	/** Ask for this many frames per second, null for the hub's own pace; kept over reconnects. */
	setRate(rate) {
		this.#rate = rate;
		if (this.#phase === "live") this.#send({
			action: "rate",
			rate,
			id: this.#newId("r")
		});
	}
	hidden(now) {
		if (this.#hidden) return;
		this.#hidden = true;
		this.#hideAt = now + this.#settings.hiddenAfter;
	}
	visible(now) {
		if (!this.#hidden) return;
		this.#hidden = false;
		this.#hideAt = void 0;
		this.#roster.wake();
		if (this.#phase === "resting") this.#dial();
		else if (this.#phase === "waiting") this.#dial();
		else if (this.#phase === "live") this.#ping(now);
		this.#ask(now);
	}
	offline(now) {
		this.#offline = true;
		if (this.#phase === "live") this.#ping(now);
	}
	online(now) {
		this.#offline = false;
		this.#hurry(now);
	}
	/** The machine slept: nothing that was known of the link holds. */
	woke(now) {
		this.#hurry(now);
	}
	gotToken(attempt, token, now) {
		if (attempt !== this.#attempt) return;
		if (typeof token !== "string" || !TOKEN.test(token)) this.tokenFailed(attempt, "the token is no text of letters, digits and -._~+", false, now);
		else if (this.#phase === "asking") {
			this.#token = token;
			this.#phase = "opening";
			this.#openBy = now + this.#settings.connectTimeout;
			this.#do({
				do: "open",
				attempt,
				token
			});
		} else if (this.#phase === "live" && this.#renewal.running) this.#renew(token, now);
	}
	/** The token's source has none: `stop` when there is no use in asking again. */
	tokenFailed(attempt, reason, stop, now, cause) {
		if (attempt !== this.#attempt) return;
		if (this.#phase === "asking") {
			if (stop || this.#settings.fixedToken) this.#stop({ reason });
			else {
				this.#trouble({
					kind: "token",
					message: reason,
					cause
				});
				this.#retry({ reason }, now);
			}
		} else if (this.#phase === "live" && this.#renewal.running) {
			this.#trouble({
				kind: "token",
				message: reason,
				cause
			});
			if (stop) this.#renewal.end();
			else this.#renewal.later(now);
		}
	}
	/** The socket cannot even be made. */
	impossible(attempt, reason) {
		if (attempt === this.#attempt && this.#phase === "opening") this.#stop({ reason });
	}
	closed(attempt, code, reason, now) {
		if (attempt !== this.#attempt || this.#phase !== "opening" && this.#phase !== "live") return;
		this.#lost(code, reason, now);
	}
	received(attempt, text, now) {
		if (attempt !== this.#attempt || this.#phase !== "opening" && this.#phase !== "live") return;
		this.#heartbeat.heard(now);
		if (typeof text !== "string" || text.length > this.#settings.longestFrame) {
			this.#trouble({
				kind: "frame",
				message: "the hub sent what is no text or too long"
			});
			this.#shut(BAD_FRAME, "frame not understood");
			this.#lost(BAD_FRAME, "frame not understood", now);
			return;
		}
		const frame = readFrame(text);
		this.stats.frames += 1;
		this.stats.messages += frame.messages.length;
		this.stats.malformed += frame.bad;
		if (frame.bad > 0) this.#trouble({
			kind: "frame",
			message: `${frame.bad} of a frame are no messages`
		});
		for (const message of frame.messages) this.#message(message, now);
	}
	tick(now) {
		if (this.#hideAt !== void 0 && now >= this.#hideAt) {
			this.#hideAt = void 0;
			this.#hide();
		}
		if (this.#phase === "waiting" && now >= this.#retryAt && !this.#held()) this.#dial();
		else if (this.#phase === "opening" && now >= this.#openBy) {
			this.#shut(NO_ANSWER, "no welcome in time");
			this.#lost(NO_ANSWER, "no welcome in time", now);
		} else if (this.#phase === "live") this.#lookAfter(now);
	}
	#dial() {
		this.#attempt += 1;
		this.#phase = "asking";
		this.#become(this.#first ? "connecting" : "reconnecting");
		this.#do({
			do: "token",
			attempt: this.#attempt,
			why: "connect"
		});
	}
	#welcomed(now) {
		if (this.#phase !== "opening") return;
		this.#phase = "live";
		this.#liveSince = now;
		this.stats.connections += 1;
		this.#become("live");
		if (this.#rate !== null) this.setRate(this.#rate);
		this.#ask(now);
	}
	#lost(code, reason, now) {
		if (this.#phase === "live" && now - this.#liveSince >= this.#settings.settledAfter) this.#failures = 0;
		if (!comesBack(code) || this.#settings.fixedToken && code === 3002) this.#stop({
			code,
			reason
		});
		else if (!this.#settings.autoReconnect) {
			this.#leave("idle");
			this.#become("closed", {
				code,
				reason
			});
		} else this.#retry({
			code,
			reason
		}, now);
	}
	#retry(why, now) {
		if (!this.#settings.autoReconnect) {
			this.#leave("idle");
			this.#become("closed", why);
			return;
		}
		this.#leave("waiting");
		this.#first = false;
		const retryIn = wait(this.#settings.backoff, this.#failures, this.#chance());
		this.#failures += 1;
		this.stats.retries += 1;
		this.#retryAt = now + retryIn;
		this.#become("reconnecting", {
			...why,
			retryIn
		});
		if (this.#roster.resting && this.#roster.quiet) this.#rest(why.reason);
	}
	#stop(why) {
		this.#leave("idle");
		this.#become("stopped", why);
	}
	#rest(reason) {
		this.#leave("resting");
		this.#first = true;
		this.#become("paused", { reason });
	}
	#leave(phase) {
		this.#attempt += 1;
		this.#phase = phase;
		this.#heartbeat.reset();
		this.#renewal.end();
		this.#roster.dropped();
	}
	#become(state, why = {}) {
		const previous = this.#state;
		if (state === previous && why.retryIn === void 0) return;
		this.#state = state;
		this.#do({
			do: "state",
			change: {
				state,
				previous,
				...why
			}
		});
	}
	/** The network is back, for others too: a short wait by chance, and is the link still one? */
	#hurry(now) {
		const soon = now + this.#chance() * this.#settings.backoff.least;
		if (this.#phase === "waiting") this.#retryAt = Math.min(this.#retryAt, soon);
		else if (this.#phase === "live") this.#ping(now);
	}
	#held() {
		return this.#offline && this.#settings.waitsForNetwork;
	}
	#lookAfter(now) {
		const verdict = this.#heartbeat.look(now);
		if (verdict === "dead") {
			this.#shut(NO_ANSWER, "no answer to a ping");
			this.#lost(NO_ANSWER, "no answer to a ping", now);
			return;
		}
		if (verdict === "ask") this.#ping(now);
		if (this.#renewal.due(now)) this.#wantNewerToken();
		this.#roster.overdue(now);
		this.#ask(now);
	}
	#ping(now) {
		const id = this.#newId("p");
		if (this.#heartbeat.ask(id, now)) this.#send({
			action: "ping",
			id
		});
	}
	#wantNewerToken() {
		this.#do({
			do: "token",
			attempt: this.#attempt,
			why: "refresh"
		});
	}
	#renew(token, now) {
		const id = this.#newId("t");
		if (token === this.#token) this.#renewal.later(now);
		else if (this.#renewal.send(id)) {
			this.#token = token;
			this.#send({
				action: "refresh",
				token,
				id
			});
		}
	}
	#message(message, now) {
		if (this.#phase !== "opening" && this.#phase !== "live") return;
		if (isData(message)) this.#data(message, now);
		else if (isControl(message)) this.#control(message, now);
	}
	#data(message, now) {
		const subscription = this.subscriptions.get(message.channel);
		if (subscription === void 0 || subscription.standing !== "on") {
			this.stats.late += 1;
			return;
		}
		const verdict = subscription.judge(message);
		subscription.heardAt = now;
		this.stats.conflated += verdict.conflated;
		if (verdict.hole !== void 0) this.#hole(message.channel, message.timestamp, verdict.hole);
		if (!verdict.fresh) {
			this.stats.duplicates += 1;
			return;
		}
		this.#do({
			do: "data",
			message,
			policy: subscription.policy,
			items: verdict.items
		});
	}
	#hole(channel, timestamp, hole) {
		const data = {
			...hole,
			count: hole.to - hole.from + 1,
			reason: "unannounced"
		};
		this.#gap({
			type: "gap",
			channel,
			timestamp,
			data
		});
	}
	#gap(message) {
		this.stats.gaps += 1;
		this.stats.missed += message.data.count ?? 0;
		this.#do({
			do: "control",
			message
		});
	}
	#control(message, now) {
		switch (message.type) {
			case "welcome":
				this.#do({
					do: "control",
					message
				});
				this.#welcomed(now);
				return;
			case "subscribed": {
				const subscription = this.subscriptions.get(message.channel);
				if (subscription === void 0 || !subscription.expects(message.data)) return;
				subscription.began(message.data);
				break;
			}
			case "unsubscribed": {
				if (message.data.id !== void 0) return;
				const subscription = this.subscriptions.get(message.channel);
				if (subscription?.standing === "on") subscription.standing = "refused";
				break;
			}
			case "gap":
				if (this.subscriptions.get(message.channel)?.standing !== "on") return;
				this.subscriptions.get(message.channel)?.announced(message.data);
				this.#gap(message);
				return;
			case "error":
				this.#error(message, now);
				return;
			case "expiring":
				this.#do({
					do: "control",
					message
				});
				if (!this.#settings.fixedToken && this.#renewal.begin()) this.#wantNewerToken();
				return;
			case "refreshed":
				this.#renewal.end();
				break;
			case "pong": this.stats.roundTrip = this.#heartbeat.roundTrip(message.data.id, now) ?? this.stats.roundTrip;
		}
		this.#do({
			do: "control",
			message
		});
	}
	#error(message, now) {
		const { code, message: words, id } = message.data;
		const { channel } = message;
		this.stats.errors += 1;
		this.#do({
			do: "control",
			message
		});
		this.#trouble({
			kind: "hub",
			code,
			message: words,
			...channel === void 0 ? {} : { channel }
		});
		if (id === void 0) return;
		this.#renewal.refused(id, now);
		this.#roster.refused(message, now);
	}
	#ask(now) {
		if (this.#phase !== "live") return;
		for (const request of this.#roster.requests(() => this.#newId("s"), now)) this.#send(request);
	}
	#giveUp(names) {
		if (names.length > 0 && this.#phase === "live") this.#send({
			action: "unsubscribe",
			channels: names,
			id: this.#newId("u")
		});
	}
	/** Nobody looks: keep only what must not be missed. */
	#hide() {
		const given = this.#roster.rest();
		if (this.#phase === "idle") return;
		if (!this.#roster.quiet) this.#giveUp(given);
		else {
			if (this.#phase === "opening" || this.#phase === "live") this.#shut(1e3, "the page is hidden");
			this.#rest("the page is hidden");
		}
	}
	#newId(kind) {
		this.#requests += 1;
		return `${kind}${this.#requests}`;
	}
	#send(request) {
		this.#do({
			do: "send",
			request
		});
	}
	#shut(code, reason) {
		this.#do({
			do: "shut",
			code,
			reason
		});
	}
	#trouble(trouble) {
		this.#do({
			do: "trouble",
			trouble
		});
	}
	#do(effect) {
		this.#effects.push(effect);
	}
};
// src/mailbox.ts
var Mailbox = class {
	most;
	#waiting = /* @__PURE__ */ new Map();
	#unkeyed = /* @__PURE__ */ new Map();
	#dropped = /* @__PURE__ */ new Map();
	#next = 0;
	constructor(most) {
		this.most = most;
	}
	get size() {
		return this.#waiting.size;
	}
	/** Let it wait; a key names what a newer item replaces. */
	put(channel, key, item) {
		const keyed = key !== void 0;
		const place = JSON.stringify(keyed ? [channel, key] : this.#next++);
		this.#waiting.delete(place);
		this.#waiting.set(place, {
			item,
			channel,
			keyed
		});
		if (keyed) return;
		const count = (this.#unkeyed.get(channel) ?? 0) + 1;
		this.#unkeyed.set(channel, count);
		if (count > this.most) this.#dropOldest(channel);
	}
	/** A channel begins anew: what waits of it is replaced. */
	clear(channel) {
		for (const [place, entry] of this.#waiting) if (entry.channel === channel) this.#waiting.delete(place);
		this.#unkeyed.delete(channel);
	}
	/** All that waits, in the order of coming, and how many were dropped by channel since the last time. */
	take() {
		const items = [...this.#waiting.values()].map((entry) => entry.item);
		const dropped = new Map(this.#dropped);
		this.#waiting.clear();
		this.#unkeyed.clear();
		this.#dropped.clear();
		return {
			items,
			dropped
		};
	}
	#dropOldest(channel) {
		for (const [place, entry] of this.#waiting) {
			if (entry.keyed || entry.channel !== channel) continue;
			this.#waiting.delete(place);
			this.#unkeyed.set(channel, (this.#unkeyed.get(channel) ?? 1) - 1);
			this.#dropped.set(channel, (this.#dropped.get(channel) ?? 0) + 1);
			return;
		}
	}
};
// src/options.ts
/** Thrown by a token callback when there is no use in asking again: the client stops. */
var StopError = class extends Error {
	kind = "stop";
	name = "StopError";
};
/** A connection that was asked for and did not come about, or ended before it did. */
var ConnectionEnded = class extends Error {
	code;
	reason;
	name = "ConnectionEnded";
	constructor(code, reason) {
		super(reason === "" ? "the connection has ended" : reason);
		this.code = code;
		this.reason = reason;
	}
};
const PATH = "/ws/analytics";
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;
/** The WebSocket's address, without anything that could end up in a log. */
function readAddress(url) {
	const base = globalThis.location?.href;
	let address;
	try {
		address = new URL(url, base);
	} catch {
		throw new TypeError("url is no address; give one like https://host:7999");
	}
	const scheme = {
		"http:": "ws:",
		"https:": "wss:",
		"ws:": "ws:",
		"wss:": "wss:"
	}[address.protocol];
	if (scheme === void 0) throw new TypeError("url begins with http, https, ws or wss");
	if (address.username !== "" || address.password !== "") throw new TypeError("url holds a user or a password; give a token instead");
	if (address.searchParams.has("token")) throw new TypeError("url holds a token, which would stand in logs; give it as token");
	address = new URL(scheme + address.href.slice(address.protocol.length));
	address.hash = "";
	if (address.pathname === "/") address.pathname = PATH;
	return address;
}
/** The names of channels. */
function readChannels(channels) {
	const names = typeof channels === "string" ? [channels] : [...channels];
	for (const name of names) if (typeof name !== "string" || name === "" || name.length > 255) throw new TypeError("a channel is named by a text of 1 to 255 characters");
	return names;
}
/** The WebSocket to use. */
function readSocket(given) {
	const socket = given ?? globalThis.WebSocket;
	if (socket === void 0) throw new TypeError("there is no WebSocket here; give one as webSocket, such as npm ws has");
	return socket;
}
/** The settings of the link behind the options. */
function readSettings(options, address) {
	const { token } = options;
	if (typeof token !== "function" && (typeof token !== "string" || token === "")) throw new TypeError("token is a text, or a function that gives one");
	readRate(options.rate ?? null);
	return {
		...DEFAULTS,
		waitsForNetwork: !LOOPBACK.test(address.hostname),
		...options.limits,
		autoReconnect: options.autoReconnect ?? true,
		fixedToken: typeof token === "string",
		rate: options.rate ?? null
	};
}
/** A rate that the hub understands. */
function readRate(rate) {
	if (rate !== null && !(rate >= .1 && rate <= 1e3)) throw new RangeError("rate is a number of frames per second from 0.1 to 1000, or null");
	return rate;
}
// src/surroundings.ts
/** The browser that this runs in, or nothing. */
function ownSurroundings() {
	const here = globalThis;
	return {
		document: here.document,
		window: here.window
	};
}
/** Tell a listener how it is and what changes, until the returned function is called. */
function listen(surroundings, listener) {
	const { document: page, window: machine } = surroundings;
	const look = () => {
		if (page?.hidden) listener.hidden();
		else listener.visible();
	};
	const online = () => listener.online();
	const offline = () => listener.offline();
	look();
	page?.addEventListener("visibilitychange", look);
	machine?.addEventListener("pageshow", look);
	machine?.addEventListener("online", online);
	machine?.addEventListener("offline", offline);
	return () => {
		page?.removeEventListener("visibilitychange", look);
		machine?.removeEventListener("pageshow", look);
		machine?.removeEventListener("online", online);
		machine?.removeEventListener("offline", offline);
	};
}
// src/client.ts
/**
* The face of the client: sockets, timers and callbacks around a `Link`, which decides.
*
* Invariants: one socket and one timer at a time; a handler that throws harms nobody; no token in a log or an error.
*/
const SUBPROTOCOL = "keepline.v1";
const LONGEST_TIMER = 2 ** 31 - 1;
const SLEPT = 5e3;
/** Live analytics of a hub: connects, comes back, resumes, and calls the handlers. */
var AnalyticsWebSocket = class {
	#handlers;
	#link;
	#address;
	#token;
	#make;
	#mailbox;
	#surroundings;
	#log;
	#socket;
	#timer;
	#armed = 1e400;
	#painting = false;
	#working = false;
	#waiter;
	#unlisten;
	#drift = 0;
	constructor(options, handlers = {}) {
		const address = readAddress(options.url);
		this.#handlers = handlers;
		this.#address = address.href;
		this.#token = options.token;
		this.#make = readSocket(options.webSocket);
		this.#link = new Link(readSettings(options, address));
		this.#mailbox = options.pace === "frame" ? new Mailbox(options.mostWaiting ?? 1e3) : void 0;
		const { window, document } = options.surroundings ?? ownSurroundings();
		this.#surroundings = {
			window,
			document: options.pauseWhenHidden === false ? void 0 : document
		};
		this.#log = logger(options.debug);
		this.#link.subscribe(readChannels(options.channels ?? []), now());
	}
	get state() {
		return this.#link.state;
	}
	/** What was counted since the client was made. */
	get stats() {
		return { ...this.#link.stats };
	}
	/** Milliseconds since anything was heard of the hub; undefined before the first. */
	get silence() {
		return age(this.#link.heardAt);
	}
	/** What is known of each channel. */
	get channels() {
		const known = [...this.#link.subscriptions.values()].map((each) => [each.name, {
			standing: each.standing,
			policy: each.policy,
			epoch: each.position?.epoch,
			offset: each.position?.offset,
			age: age(each.heardAt)
		}]);
		return new Map(known);
	}
	/**
	* Connect, and stay connected until `close`.
	*
	* @returns a promise of the first live connection, which need not be awaited; it fails with `ConnectionEnded` when
	*   the client is closed or stops before that.
	*/
	connect() {
		if (this.#link.state === "live") return Promise.resolve();
		const waiter = this.#waiter ??= newWaiter();
		this.#unlisten ??= this.#listen();
		this.#feed(() => this.#link.connect());
		return waiter.promise;
	}
	/** Subscribe to channels now, and again on each connection. */
	subscribe(channels) {
		const names = readChannels(channels);
		this.#feed((at) => this.#link.subscribe(names, at));
	}
	/** Give channels up; nothing of them comes after this. */
	unsubscribe(channels) {
		const names = readChannels(channels);
		this.#feed(() => this.#link.unsubscribe(names));
		for (const name of names) this.#mailbox?.clear(name);
	}
	/** Ask for this many frames per second, null for the hub's own pace. */
	setRate(rate) {
		readRate(rate);
		this.#feed(() => this.#link.setRate(rate));
	}
	/** Close for good; `connect` begins again. */
	close(code = 1e3, reason = "") {
		this.#feed(() => this.#link.close(code, reason));
	}
	#feed(input) {
		input(now());
		this.#work();
	}
	#work() {
		if (this.#working) return;
		this.#working = true;
		try {
			for (let effects = this.#link.take(); effects.length > 0; effects = this.#link.take()) for (const effect of effects) this.#carryOut(effect);
		} finally {
			this.#working = false;
		}
		this.#arm();
	}
	#carryOut(effect) {
		switch (effect.do) {
			case "token":
				this.#fetchToken(effect.attempt, effect.why);
				break;
			case "open":
				this.#open(effect.attempt, effect.token);
				break;
			case "send":
				this.#log?.(`> ${effect.request.action}`);
				this.#socket?.send(JSON.stringify(effect.request));
				break;
			case "shut":
				this.#shut(effect.code, effect.reason);
				break;
			case "state":
				this.#changed(effect.change);
				break;
			case "control":
				this.#controlled(effect.message);
				break;
			case "data":
				this.#arrived(effect);
				break;
			case "trouble": this.#trouble(effect.trouble);
		}
	}
	#arm() {
		const deadline = this.#link.deadline ?? 1e400;
		if (deadline >= this.#armed && deadline !== 1e400) return;
		clearTimeout(this.#timer);
		this.#armed = deadline;
		if (deadline === 1e400) return;
		const delay = Math.min(Math.max(0, Math.ceil(deadline - now())), LONGEST_TIMER);
		this.#timer = setTimeout(() => {
			this.#armed = 1e400;
			this.#feed((at) => {
				if (this.#slept()) this.#link.woke(at);
				this.#link.tick(at);
			});
		}, delay);
	}
	/** The wall clock went on and ours did not: the machine was asleep. */
	#slept() {
		const drift = Date.now() - now();
		const slept = drift - this.#drift > SLEPT;
		this.#drift = drift;
		return slept;
	}
	#listen() {
		this.#drift = Date.now() - now();
		return listen(this.#surroundings, {
			hidden: () => this.#feed((at) => this.#link.hidden(at)),
			visible: () => this.#feed((at) => this.#link.visible(at)),
			online: () => this.#feed((at) => this.#link.online(at)),
			offline: () => this.#feed((at) => this.#link.offline(at))
		});
	}
	async #fetchToken(attempt, why) {
		try {
			const token = typeof this.#token === "function" ? await this.#token(why) : this.#token;
			this.#feed((at) => this.#link.gotToken(attempt, token, at));
		} catch (error) {
			const stop = error?.kind === "stop";
			const reason = `no token: ${error instanceof Error ? error.message : String(error)}`;
			this.#feed((at) => this.#link.tokenFailed(attempt, reason, stop, at, error));
		}
	}
	#open(attempt, token) {
		let socket;
		try {
			socket = new this.#make(this.#address, [SUBPROTOCOL, `bearer.${token}`]);
		} catch (error) {
			const name = error instanceof Error ? error.name : "an error";
			this.#link.impossible(attempt, `the WebSocket could not be made: ${name}`);
			return;
		}
		this.#socket = socket;
		socket.addEventListener("message", (event) => {
			this.#feed((at) => this.#link.received(attempt, event.data, at));
		});
		socket.addEventListener("close", (event) => {
			if (this.#socket === socket) this.#socket = void 0;
			this.#feed((at) => this.#link.closed(attempt, event.code, event.reason, at));
		});
		socket.addEventListener("error", () => void 0);
	}
	#shut(code, reason) {
		const socket = this.#socket;
		this.#socket = void 0;
		if (code === 4e3 && socket?.terminate) socket.terminate();
		else socket?.close(code, reason);
	}
	#changed(change) {
		const { state, previous, code, reason, retryIn } = change;
		const again = retryIn === void 0 ? "" : `, again in ${Math.round(retryIn)} ms`;
		this.#log?.(`${previous} -> ${state}${code ? ` (${code})` : ""} ${reason ?? ""}${again}`);
		const ended = state === "closed" || state === "stopped";
		if (ended) {
			this.#unlisten?.();
			this.#unlisten = void 0;
			this.#flush();
		}
		this.#call(() => this.#handlers.onState?.(change));
		if (state === "live") this.#waiter?.resolve();
		else if (ended) this.#waiter?.reject(new ConnectionEnded(code, reason ?? ""));
		if (ended || state === "live") this.#waiter = void 0;
	}
	#controlled(message) {
		const handlers = this.#handlers;
		this.#call(() => handlers.onControl?.(message));
		if (message.type === "gap") this.#call(() => handlers.onGap?.(message));
		else if (message.type === "subscribed") this.#call(() => handlers.onSubscribed?.(message));
		else if (message.type === "unsubscribed") this.#call(() => handlers.onUnsubscribed?.(message));
	}
	#arrived(effect) {
		const { message, policy } = effect;
		const mailbox = this.#mailbox;
		const partial = isSnapshot(message) && message.data.partial;
		if (mailbox === void 0 || policy === "never") this.#deliver(effect);
		else if (partial) {
			this.#flush();
			this.#deliver(effect);
		} else {
			if (isSnapshot(message) && policy === "conflate") mailbox.clear(message.channel);
			mailbox.put(message.channel, policy === "conflate" ? placeOf(message) : void 0, effect);
			this.#paintSoon();
		}
	}
	#paintSoon() {
		if (this.#painting) return;
		this.#painting = true;
		const paint = () => {
			this.#painting = false;
			this.#flush();
		};
		if (typeof requestAnimationFrame === "function") requestAnimationFrame(paint);
		else setTimeout(paint, 16);
	}
	#flush() {
		if (this.#mailbox === void 0 || this.#mailbox.size === 0) return;
		const { items, dropped } = this.#mailbox.take();
		for (const [channel, count] of dropped) {
			this.#link.stats.dropped += count;
			this.#call(() => this.#handlers.onDropped?.(channel, count));
		}
		for (const effect of items) this.#deliver(effect);
	}
	#deliver({ message, items }) {
		this.#call(() => this.#handlers.onMessage?.(message));
		if (!isSnapshot(message)) {
			this.#dispatch(message, false);
			return;
		}
		this.#call(() => this.#handlers.onSnapshot?.(message));
		for (const item of items) this.#dispatch(item, true);
	}
	#dispatch(given, snapshot) {
		const handlers = this.#handlers;
		if (given.data === null || given.data === void 0) {
			this.#call(() => handlers.onRemoved?.(given.channel, given.key ?? "", given));
			return;
		}
		const message = given;
		const arrival = { snapshot };
		this.#call(() => {
			switch (message.type) {
				case "routing-decision": return handlers.onRoutingMetrics?.(message.data, message, arrival);
				case "lp-metrics": return handlers.onLPPerformance?.(message.data, message, arrival);
				case "exposure-change": return handlers.onExposureUpdate?.(message.data, message, arrival);
				case "alert": return handlers.onAlert?.(message.data, message, arrival);
				default: return handlers.onOther?.(given.data, given, arrival);
			}
		});
	}
	#call(handler) {
		const fail = (error) => {
			const words = error instanceof Error ? error.message : String(error);
			this.#trouble({
				kind: "handler",
				message: `a handler failed: ${words}`,
				cause: error
			});
		};
		try {
			const done = handler();
			if (done instanceof Promise) done.catch(fail);
		} catch (error) {
			fail(error);
		}
	}
	#trouble(trouble) {
		this.#log?.(`! ${trouble.kind}: ${trouble.message}`);
		try {
			this.#handlers.onError?.(trouble);
		} catch {
			this.#log?.("! onError itself failed");
		}
	}
};
function isSnapshot(message) {
	return message.type === "snapshot";
}
function placeOf(message) {
	return isSnapshot(message) ? "snapshot" : `key ${message.key ?? ""}`;
}
function now() {
	return performance.now();
}
function age(at) {
	return at === 0 ? void 0 : now() - at;
}
function logger(debug) {
	if (typeof debug === "function") return debug;
	return debug ? (line) => console.debug(`keepline: ${line}`) : void 0;
}
function newWaiter() {
	let resolve = () => void 0;
	let reject = (_) => void 0;
	const promise = new Promise((yes, no) => {
		resolve = yes;
		reject = no;
	});
	promise.catch(() => void 0);
	return {
		promise,
		resolve,
		reject
	};
}
export { AnalyticsWebSocket, ConnectionEnded, StopError, comesBack };
