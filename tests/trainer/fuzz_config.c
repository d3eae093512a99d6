/* Fuzz target: any bytes as a YAML config are refused with a complaint, or taken; what is taken
 * dumps as YAML that reads back to the same dump. */
#include "trainer/config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Config *c = config_new(), *again = config_new();
    Error e = {0};
    if (config_read_text(c, (const char *)data, bytes, "fuzz.yaml", &e)) {
        char *dump = config_dump(c);
        bool ok = config_read_text(again, dump, strlen(dump), "dump.yaml", &e);
        CHECK(ok, "the dump is refused: %s", e.text);
        char *second = config_dump(again);
        CHECK(!strcmp(dump, second), "the dump changed:\n%s\n%s", dump, second);
        free(second);
        free(dump);
    } else {
        CHECK(e.exit_code == EXIT_USER && e.text[0], "refused without a complaint");
    }
    config_free(again);
    config_free(c);
    return 0;
}
