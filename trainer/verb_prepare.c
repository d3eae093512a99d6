/* `cogsmith prepare`: clips and captions into the cache. Counts on stdout, one `name number` a
 * line. */
#include "trainer/cli.h"
#include "trainer/model.h"
#include "trainer/prepare.h"

int verb_prepare(const Call *call) {
    const Config *c = call->config;
    Error e = {0};
    if (!call->verify || !c->data.cache) config_require(c, "data.path", "prepare");
    if (call->verify) return prepare_verify(c);
    config_require(c, "model.path", "prepare");
    if (!prepare_run(c, &e)) die_error(&e);
    return 0;
}
