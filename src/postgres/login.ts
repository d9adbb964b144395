/**
 * Logs in to a server. Rejects requests that reveal the password without permission,
 * and hashes that take hours. With SCRAM, the server must prove that it knows the
 * password.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import {
  createHash,
  createHmac,
  pbkdf2Sync,
  randomBytes,
  timingSafeEqual,
} from "node:crypto";
import type { DatabaseConfig } from "../config/config.ts";
import type { AuthMethod } from "../config/parsers.ts";
import { ServiceError } from "../errors.ts";
import { address, variable } from "./address.ts";

/** Maximum iterations of the password hash. They take about half a second. PostgreSQL's default is 4096. */
const MAX_SCRAM_ITERATIONS = 1_000_000;

const MECHANISM = "SCRAM-SHA-256";

/** The progress of a SCRAM exchange. */
type ScramState = "none" | "begun" | "challenged" | "finished";

/** A password, as it is and in the form that SCRAM hashes. */
export interface Credentials {
  readonly password: string;
  readonly prepared: string;
}

/**
 * Characters that NFKC replaces, and that Unicode 3.2 lacks or SASLprep prohibits.
 * libpq checks for them before NFKC, and the library only after it.
 */
const PROHIBITED_BEFORE_NFKC =
  /[\u0340-\u0341\u03f7-\u03ff\u10fc-\u10ff\u18aa-\u1dff\u208f-\u209f\u213b-\u213c\u214c-\u2152\u2184-\u218f\u2b00-\u2e7f\u321d-\u321f\u3244-\u3250\u327c-\u327e\u32cc-\u32cf\u32ff\u3377-\u337a\u33de-\u33df\u33ff\ua4c7-\uabff\ufa2e-\ufa2f\ufa6b-\ufaff\ufe10-\ufe1f\ufe47-\ufe48\u{1044e}-\u{1cfff}\u{1d4c1}\u{1d6a4}-\u{1d6a7}\u{1d7ca}-\u{1d7cd}\u{1d800}-\u{1ffff}]/u;

/**
 * Returns the credentials for a password.
 *
 * As in libpq, SCRAM hashes the result of SASLprep (RFC 4013). It hashes the password
 * itself if SASLprep prohibits one of its characters.
 */
export async function credentialsOf(password = ""): Promise<Credentials> {
  const same = { password, prepared: password };
  const isAscii = /^[\0-\x7f]*$/.test(password);
  if (isAscii || PROHIBITED_BEFORE_NFKC.test(password)) return same;
  const { default: saslprep } = await import("@mongodb-js/saslprep");
  try {
    return { password, prepared: saslprep(password) || password };
  } catch {
    return same;
  }
}

/** The login of one connection. */
export class Login {
  readonly #config: DatabaseConfig;
  readonly #credentials: Credentials;
  readonly #violation: (what: string) => ServiceError;
  #isComplete = false;
  #hasSentPassword = false;
  #scram: ScramState = "none";
  readonly #nonce = randomBytes(18).toString("base64");
  /** The signature with which the server proves that it knows the password. */
  #signature: Buffer = Buffer.alloc(0);

  /** `violation` returns the error of a server that violates the protocol. */
  constructor(
    config: DatabaseConfig,
    credentials: Credentials,
    violation: (what: string) => ServiceError,
  ) {
    this.#config = config;
    this.#credentials = credentials;
    this.#violation = violation;
  }

  /** Whether the server accepted the login. */
  get isComplete(): boolean {
    return this.#isComplete;
  }

  /**
   * Returns the answer to a request of the server, or `undefined` where it expects
   * none. `hasMore` means that it did not wait for an answer.
   *
   * @throws {ServiceError} when the request is malformed, or not allowed.
   */
  answer(body: Buffer, hasMore: boolean): Buffer | undefined {
    if (this.#isComplete) {
      throw this.#violation("an authentication request after the login");
    }
    if (body.length < 4) {
      throw this.#violation("a malformed authentication request");
    }
    const request = body.readUInt32BE(0);
    const isAnswered = [3, 5, 10, 11].includes(request);
    if (isAnswered && hasMore) {
      throw this.#violation("more data after an authentication request");
    }
    const { password, prepared } = this.#credentials;
    switch (request) {
      case 0:
        if (this.#scram === "none") {
          // Checks a login without a password. A request for a password was checked before.
          if (!this.#hasSentPassword) this.#allow("none");
        } else if (this.#scram !== "finished") {
          throw this.#refusal(
            "the server ended SCRAM authentication without its signature, so it may not know the password",
            "Check that host and port lead to your server. A genuine server always sends its signature.",
          );
        }
        this.#isComplete = true;
        return undefined;
      case 3:
        this.#allow("password");
        this.#hasSentPassword = true;
        return passwordMessage(`${password}\0`);
      case 5: {
        if (body.length !== 8) {
          throw this.#violation("a malformed authentication request");
        }
        this.#allow("md5");
        this.#hasSentPassword = true;
        const inner = md5(password + this.#config.user);
        return passwordMessage(`md5${md5(inner, body.subarray(4))}\0`);
      }
      case 10: {
        const mechanisms = body.toString("latin1", 4).split("\0");
        if (!mechanisms.includes(MECHANISM)) {
          throw this.#unsupported(
            `SASL with ${mechanisms.filter(Boolean).join(", ")}`,
          );
        }
        this.#allow("scram-sha-256");
        this.#expectScram("none");
        this.#scram = "begun";
        const first = `n,,n=,r=${this.#nonce}`;
        const length = Buffer.alloc(4);
        length.writeUInt32BE(first.length);
        return passwordMessage(
          `${MECHANISM}\0${length.toString("latin1")}${first}`,
        );
      }
      case 11:
        this.#expectScram("begun");
        this.#scram = "challenged";
        return this.#prove(prepared, body.toString("latin1", 4));
      case 12: {
        this.#expectScram("challenged");
        const signature = Buffer.from(body.toString("latin1", 6), "base64");
        const isGenuine = signature.length === this.#signature.length &&
          timingSafeEqual(signature, this.#signature);
        if (!isGenuine) {
          throw this.#refusal(
            "the server sent a wrong SCRAM signature, so it may not know the password",
            "Check that host and port lead to your server.",
          );
        }
        this.#scram = "finished";
        return undefined;
      }
      case 7:
      case 8:
        throw this.#unsupported("GSSAPI (Kerberos)");
      case 9:
        throw this.#unsupported("SSPI (Windows)");
      default:
        throw this.#unsupported(`method ${request}`);
    }
  }

  #expectScram(state: ScramState): void {
    if (this.#scram !== state || this.#hasSentPassword) {
      throw this.#violation("an unexpected authentication request");
    }
  }

  /** Returns the proof that the client knows the password (RFC 5802). */
  #prove(password: string, challenge: string): Buffer {
    const [, nonce, salt, iterations] =
      /^r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/]+={0,2}),i=([1-9]\d*)$/
        .exec(challenge) ?? [];
    if (nonce === undefined) {
      throw this.#violation("a malformed SCRAM challenge");
    }
    if (!nonce.startsWith(this.#nonce) || nonce === this.#nonce) {
      throw this.#violation("a SCRAM challenge for another client");
    }
    if (Number(iterations) > MAX_SCRAM_ITERATIONS) {
      throw this.#refusal(
        `the server asks for ${iterations} SCRAM iterations, and the maximum is ${MAX_SCRAM_ITERATIONS}`,
        "Lower scram_iterations on the server and set the role's password again.",
      );
    }
    const key = pbkdf2Sync(
      password,
      Buffer.from(salt!, "base64"),
      Number(iterations),
      32,
      "sha256",
    );
    // "biws" is the base64 of "n,,": no channel binding.
    const final = `c=biws,r=${nonce}`;
    const all = `n=,r=${this.#nonce},${challenge},${final}`;
    this.#signature = hmac(hmac(key, "Server Key"), all);
    const client = hmac(key, "Client Key");
    const stored = createHash("sha256").update(client).digest();
    const proof = hmac(stored, all).map((byte, i) => byte ^ client[i]!);
    return passwordMessage(
      `${final},p=${Buffer.from(proof).toString("base64")}`,
    );
  }

  /** @throws {ServiceError} unless the method is allowed. */
  #allow(method: AuthMethod): void {
    const { requireAuth } = this.#config;
    if (requireAuth.has(method)) return;
    const name = variable(this.#config, "REQUIRE_AUTH");
    const allowed = [...requireAuth].join(",");
    const [what, remedy] = {
      password: [
        "the server asks for the password in clear text",
        `Set ${
          variable(this.#config, "SSLMODE")
        }=verify-full, or use scram-sha-256 on the server. To send the password anyway, set ${name}=${allowed},password.`,
      ],
      md5: [
        "the server asks for an MD5 hash of the password",
        `Store the password with scram-sha-256 on the server, or set ${name}=${allowed},md5.`,
      ],
      "scram-sha-256": [
        "the server asks for SCRAM authentication",
        `Add scram-sha-256 to ${name}.`,
      ],
      none: [
        "the server asks for no authentication",
        `Require scram-sha-256 in the server's pg_hba.conf, or add none to ${name}.`,
      ],
    }[method] as [string, string];
    throw this.#refusal(`${what}, and ${name} allows ${allowed}`, remedy);
  }

  #unsupported(what: string): ServiceError {
    return this.#refusal(
      `the server asks for authentication by ${what}, which is not supported`,
      "Let the role log in with scram-sha-256 in the server's pg_hba.conf.",
    );
  }

  #refusal(reason: string, remedy: string): ServiceError {
    return new ServiceError(
      "authentication_failed",
      `Cannot log in to ${address(this.#config)}: ${reason}`,
      { remedy },
    );
  }
}

/** Returns a message that answers an authentication request. */
function passwordMessage(text: string): Buffer {
  const body = Buffer.from(text);
  const header = Buffer.from("p\0\0\0\0");
  header.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([header, body]);
}

function md5(...parts: (string | Buffer)[]): string {
  const hash = createHash("md5");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}
