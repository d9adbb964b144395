/**
 * A receiver of webhooks on loopback. It verifies each request with the library of
 * Standard Webhooks, stores it, and answers as the test requires.
 *
 * @module
 */
import { Webhook } from "standardwebhooks";

/** The signing key of the program. */
const SECRET = `whsec_${btoa("a key of thirty-two bytes, no more")}`;

/** The content of a request. */
export interface Post {
  readonly id: string;
  readonly headers: Headers;
  // deno-lint-ignore no-explicit-any -- the tests assert on what they use
  readonly cloudEvent: any;
}

type Answer = (post: Post) => Response | Promise<Response>;

/** A listening receiver. */
export interface Endpoint extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  /** All requests with a valid signature, in order. */
  readonly posts: readonly Post[];
  /** Refused requests with the reason. A test expects none. */
  readonly forged: readonly unknown[];
  /** The answer to the next requests. */
  answer: Answer;
}

/** Returns the variables that direct the program to a receiver. */
export function webhookVariables(url: string): Record<string, string> {
  return { EVENT_WEBHOOK_URL: url, EVENT_WEBHOOK_SECRET: SECRET };
}

export const taken: Answer = () => new Response(null, { status: 204 });

/** Returns the ids of requests, in order. */
export function idsOf(endpoint: Endpoint): string[] {
  return endpoint.posts.map((post) => post.id);
}

/** Starts a receiver. Uses a free port when none is named. */
export function startEndpoint(answer: Answer = taken, port = 0): Endpoint {
  const posts: Post[] = [];
  const forged: unknown[] = [];
  const verifier = new Webhook(SECRET);
  const server = Deno.serve(
    {
      hostname: "127.0.0.1",
      port,
      onListen() {},
      onError: () => new Response(null, { status: 500 }),
    },
    async (request) => {
      const body = await request.text();
      try {
        const cloudEvent = verifier.verify(
          body,
          Object.fromEntries(request.headers),
        );
        const post = {
          id: request.headers.get("webhook-id")!,
          headers: request.headers,
          cloudEvent,
        };
        posts.push(post);
        return await endpoint.answer(post);
      } catch (error) {
        forged.push(error);
        return new Response(null, { status: 400 });
      }
    },
  );
  const endpoint: Endpoint = {
    url: `http://127.0.0.1:${server.addr.port}/hook`,
    port: server.addr.port,
    posts,
    forged,
    answer,
    async [Symbol.asyncDispose]() {
      await server.shutdown();
    },
  };
  return endpoint;
}
