/**
 * Checks how a server asks for the password. The driver answers every request:
 * it would send the password in clear text, hash for hours, and trust a server
 * that does not prove that it knows the password.
 *
 * @module
 */
import type { Buffer } from "node:buffer";
import type { DatabaseConfig } from "../config/config.ts";
import type { AuthMethod } from "../config/parsers.ts";
import { ServiceError } from "../errors.ts";
import { address } from "./errors.ts";

/** Maximum iterations of the password hash. They take about half a second. PostgreSQL's default is 4096. */
const MAX_SCRAM_ITERATIONS = 1_000_000;

/** The progress of a SCRAM exchange. */
type ScramState = "none" | "begun" | "challenged" | "finished";

/** Checks the login of one connection. */
export class LoginCheck {
  readonly #config: DatabaseConfig;
  readonly #violation: (what: string) => ServiceError;
  #isComplete = false;
  #hasSentPassword = false;
  #scram: ScramState = "none";
  /** The SCRAM nonce of the client. The challenge must begin with it. */
  #nonce: string | undefined;

  /** `violation` returns the error of a server that violates the protocol. */
  constructor(
    config: DatabaseConfig,
    violation: (what: string) => ServiceError,
  ) {
    this.#config = config;
    this.#violation = violation;
  }

  /** Whether the server accepted the login. */
  get isComplete(): boolean {
    return this.#isComplete;
  }

  /** Records the SCRAM nonce that the driver sends. The driver does not compare it with the challenge. */
  checkClient(chunk: Buffer): void {
    if (this.#scram !== "begun") return;
    this.#nonce ??= /n,,n=\*,r=([\x21-\x2b\x2d-\x7e]+)$/
      .exec(chunk.toString("latin1"))?.[1];
  }

  /** Checks a request of the server. `hasMore` means that it did not wait for an answer. */
  check(body: Buffer, hasMore: boolean): void {
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
        return;
      case 3:
        this.#allow("password");
        this.#hasSentPassword = true;
        return;
      case 5:
        if (body.length !== 8) {
          throw this.#violation("a malformed authentication request");
        }
        this.#allow("md5");
        this.#hasSentPassword = true;
        return;
      case 10: {
        const mechanisms = body.toString("latin1", 4).split("\0");
        if (!mechanisms.includes("SCRAM-SHA-256")) {
          throw this.#unsupported(
            `SASL with ${mechanisms.filter(Boolean).join(", ")}`,
          );
        }
        this.#allow("scram-sha-256");
        this.#expectScram("none");
        this.#scram = "begun";
        return;
      }
      case 11:
        this.#expectScram("begun");
        this.#inspectChallenge(body.toString("latin1", 4));
        this.#scram = "challenged";
        return;
      case 12:
        // The driver compares the signature, and closes the connection when it is wrong.
        this.#expectScram("challenged");
        this.#scram = "finished";
        return;
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

  /** Checks a SCRAM challenge. The driver checks neither its format nor its number of iterations. */
  #inspectChallenge(challenge: string): void {
    const [, nonce, iterations] =
      /^r=([\x21-\x2b\x2d-\x7e]+),s=[A-Za-z0-9+/]+={0,2},i=([1-9]\d*)$/
        .exec(challenge) ?? [];
    if (nonce === undefined) {
      throw this.#violation("a malformed SCRAM challenge");
    }
    if (
      !this.#nonce || !nonce.startsWith(this.#nonce) ||
      nonce === this.#nonce
    ) {
      throw this.#violation("a SCRAM challenge for another client");
    }
    if (Number(iterations) > MAX_SCRAM_ITERATIONS) {
      throw this.#refusal(
        `the server asks for ${iterations} SCRAM iterations, and the maximum is ${MAX_SCRAM_ITERATIONS}`,
        "Lower scram_iterations on the server and set the role's password again.",
      );
    }
  }

  /** @throws {ServiceError} unless the method is allowed. */
  #allow(method: AuthMethod): void {
    const { requireAuth, label } = this.#config;
    if (requireAuth.has(method)) return;
    const variable = `${label.toUpperCase()}_DB_REQUIRE_AUTH`;
    const allowed = [...requireAuth].join(",");
    const [what, remedy] = {
      password: [
        "the server asks for the password in clear text",
        `Set ${label.toUpperCase()}_DB_SSLMODE=verify-full, or use scram-sha-256 on the server. To send the password anyway, set ${variable}=${allowed},password.`,
      ],
      md5: [
        "the server asks for an MD5 hash of the password",
        `Store the password with scram-sha-256 on the server, or set ${variable}=${allowed},md5.`,
      ],
      "scram-sha-256": [
        "the server asks for SCRAM authentication",
        `Add scram-sha-256 to ${variable}.`,
      ],
      none: [
        "the server asks for no authentication",
        `Require scram-sha-256 in the server's pg_hba.conf, or add none to ${variable}.`,
      ],
    }[method] as [string, string];
    throw this.#refusal(`${what}, and ${variable} allows ${allowed}`, remedy);
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
