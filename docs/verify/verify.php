<?php

// Verify the X-BotBat-Signature of a webhook: PHP 8.2 or later, no extension.
//
// Paste the marked part. Run as a program, the file reads one JSON object from standard input:
// {"secret", "body", "header", "tolerance", "now"}, and prints `valid` or `invalid: <reason>`.

declare(strict_types=1);

// --8<-- start
/**
 * Throws unless $header (X-BotBat-Signature) signs $body, the raw bytes: file_get_contents('php://input').
 * $tolerance is how many seconds the timestamp may be off, either way; $now is Unix time in seconds.
 */
function verify(string $secret, string $body, ?string $header, int $tolerance = 300, ?int $now = null): void
{
    if ($secret === '') { // anyone can sign with an empty key
        throw new UnexpectedValueException('the secret is empty');
    }
    $times = [];
    $signatures = []; // two while a secret is rotated
    foreach (explode(',', $header ?? '') as $item) {
        [$name, $value] = explode('=', $item, 2) + [1 => ''];
        if ($name === 't') {
            $times[] = $value;
        } elseif ($name === 'v1') {
            $signatures[] = $value;
        }
    }
    if (count($times) !== 1 || preg_match('/^[0-9]{1,12}\z/', $times[0]) !== 1) {
        throw new UnexpectedValueException('malformed header');
    }
    if (abs(($now ?? time()) - (int) $times[0]) > $tolerance) {
        throw new UnexpectedValueException('timestamp outside the tolerance');
    }
    $expected = hash_hmac('sha256', $times[0] . '.' . $body, $secret);
    foreach ($signatures as $signature) {
        if (hash_equals($expected, $signature)) { // constant time
            return;
        }
    }
    throw new UnexpectedValueException('no signature matches');
}
// --8<-- end

if (PHP_SAPI === 'cli' && realpath($_SERVER['SCRIPT_FILENAME']) === __FILE__) {
    $given = json_decode(file_get_contents('php://stdin'), true, flags: JSON_THROW_ON_ERROR);
    try {
        verify(
            $given['secret'],
            $given['body'],
            $given['header'],
            $given['tolerance'] ?? 300,
            $given['now'] ?? null,
        );
        echo "valid\n";
    } catch (UnexpectedValueException $error) {
        echo 'invalid: ', $error->getMessage(), "\n";
        exit(1);
    }
}
