// Verify the X-BotBat-Signature of a webhook: Go 1.18 or later, standard library only.
//
// Paste the marked part. Run as a program (go run verify.go), the file reads one JSON object from
// standard input: {"secret", "body", "header", "tolerance", "now"}, and prints `valid` or
// `invalid: <reason>`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// --8<-- start
import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
)

// defaultTolerance is how many seconds the timestamp may be off, either way.
const defaultTolerance = 300

// verify gives an error unless header (X-BotBat-Signature) signs body, the raw bytes as received.
// tolerance is in seconds; now is time.Now().Unix().
func verify(secret string, body []byte, header string, tolerance, now int64) error {
	if secret == "" { // anyone can sign with an empty key
		return errors.New("the secret is empty")
	}
	var times, signatures []string // two signatures while a secret is rotated
	for _, item := range strings.Split(header, ",") {
		name, value, _ := strings.Cut(item, "=")
		switch name {
		case "t":
			times = append(times, value)
		case "v1":
			signatures = append(signatures, value)
		}
	}
	if len(times) != 1 || len(times[0]) > 12 {
		return errors.New("malformed header")
	}
	sent, err := strconv.ParseUint(times[0], 10, 63) // digits only, no sign
	if err != nil {
		return errors.New("malformed header")
	}
	if age := now - int64(sent); age > tolerance || age < -tolerance {
		return errors.New("timestamp outside the tolerance")
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(times[0] + "."))
	mac.Write(body)
	expected := hex.EncodeToString(mac.Sum(nil))
	for _, signature := range signatures {
		if hmac.Equal([]byte(expected), []byte(signature)) { // constant time
			return nil
		}
	}
	return errors.New("no signature matches")
}

// --8<-- end

func main() {
	var given struct {
		Secret, Body, Header string
		Tolerance, Now       *int64
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	tolerance, now := int64(defaultTolerance), time.Now().Unix()
	if given.Tolerance != nil {
		tolerance = *given.Tolerance
	}
	if given.Now != nil {
		now = *given.Now
	}
	if err := verify(given.Secret, []byte(given.Body), given.Header, tolerance, now); err != nil {
		fmt.Println("invalid:", err)
		os.Exit(1)
	}
	fmt.Println("valid")
}
