// Verify the X-BotBat-Signature of a webhook: Node 20 or later, standard library only.
//
// Paste the marked part. Run as a program, the file reads one JSON object from standard input:
// {"secret", "body", "header", "tolerance", "now"}, and prints `valid` or `invalid: <reason>`.

// --8<-- start
import { createHmac, timingSafeEqual } from "node:crypto";

/**
 * Throws unless `header` (X-BotBat-Signature) signs `body`, the raw bytes as received (a Buffer).
 * `tolerance` is how many seconds the timestamp may be off, either way; `now` is Unix time in seconds.
 */
export function verify(secret, body, header, tolerance = 300, now = Math.floor(Date.now() / 1000)) {
  if (!secret) throw new Error("the secret is empty"); // anyone can sign with an empty key
  const times = [];
  const signatures = []; // two while a secret is rotated
  for (const item of (header ?? "").split(",")) {
    if (item.startsWith("t=")) times.push(item.slice(2));
    if (item.startsWith("v1=")) signatures.push(Buffer.from(item.slice(3)));
  }
  if (times.length !== 1 || !/^[0-9]{1,12}$/.test(times[0])) throw new Error("malformed header");
  // Written so that a NaN is refused.
  if (!(Math.abs(now - Number(times[0])) <= tolerance)) throw new Error("timestamp outside the tolerance");
  const hmac = createHmac("sha256", secret).update(`${times[0]}.`).update(body);
  const expected = Buffer.from(hmac.digest("hex"));
  const matches = (given) => given.length === expected.length && timingSafeEqual(given, expected);
  if (!signatures.some(matches)) throw new Error("no signature matches");
}
// --8<-- end

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = JSON.parse(readFileSync(0, "utf8"));
  try {
    verify(
      given.secret,
      Buffer.from(given.body),
      given.header,
      given.tolerance ?? undefined,
      given.now ?? undefined,
    );
    console.log("valid");
  } catch (error) {
    console.log(`invalid: ${error.message}`);
    process.exitCode = 1;
  }
}
