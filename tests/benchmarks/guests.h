/* Touches of active windows and their sampling, after hostsim/loud.py, touch.py and sample.py.
Part of kernels.c. */

enum { QUIET = 0, LOUD = 2, ANY = 0, WRITE = 1 };

static inline uint8_t loudness(uint8_t byte, uint32_t word) {
    uint8_t now = byte & STATE;
    uint8_t is_known = ((byte & ACCESSED) != 0) & (byte >= 1 << USE_SHIFT);
    uint8_t in_memory = (now == RESIDENT) | (now == SHARED);
    uint8_t is_told = ((byte & HINT) == 0) | ((word & STALE) != 0);
    uint8_t is_own = (now == RESIDENT) & ((word & UNIQUE) != 0) & is_told;
    uint8_t keeps_writes = ((byte >> USE_SHIFT) != ANON) | is_own;
    return (uint8_t)(3 - 2 * (is_known & in_memory) - keeps_writes);
}

static inline int64_t slot_of(const State *st, int which, int64_t i) {
    return which == ANY ? i : st->n_loud - 1 - i;
}

static inline void add(State *st, int64_t offset, int volume) {
    if (volume == QUIET) return;
    int which = volume >= LOUD ? ANY : WRITE;
    int64_t at = slot_of(st, which, st->n_heard[which]++);
    st->heard[at] = (int32_t)offset;
    st->heard_at[offset] = (int32_t)at;
}

static inline void drop(State *st, int64_t offset, int volume) {
    if (volume == QUIET) return;
    int which = volume >= LOUD ? ANY : WRITE;
    int32_t last = st->heard[slot_of(st, which, --st->n_heard[which])];
    int32_t at = st->heard_at[offset];
    st->heard[at] = last;
    st->heard_at[last] = at;
}

/* add() for each, without branches: every offset is written behind both lists, and the one that it
   belongs to grows. */
static void add_all(State *st, int64_t first, int64_t end) {
    int32_t *restrict heard = st->heard, *restrict heard_at = st->heard_at;
    const uint8_t *restrict loud = st->loud;
    const int64_t last = st->n_loud - 1;
    int64_t n_any = st->n_heard[ANY], n_write = st->n_heard[WRITE];
    for (int64_t i = first; i < end; i++) {
        heard[n_any] = heard[last - n_write] = (int32_t)i;
        heard_at[i] = (int32_t)(loud[i] >= LOUD ? n_any : last - n_write);
        n_any += loud[i] >= LOUD;
        n_write += loud[i] == 1;
    }
    st->n_heard[ANY] = n_any;
    st->n_heard[WRITE] = n_write;
}

static void judge(const uint8_t *restrict page, const uint32_t *restrict content,
                  uint8_t *restrict loud, int64_t n) {
    for (int64_t i = 0; i < n; i++) loud[i] = loudness(page[i], content[i]);
}

static void listen(State *st, const Vm *vm) {
    const int64_t first = vm->base_slot + vm->kernel, active = vm->active;
    const int64_t done = min(active, vm->span - vm->window), rest = active - done;
    judge(st->page + first + vm->window, st->content + first + vm->window, st->loud, done);
    judge(st->page + first, st->content + first, st->loud + done, rest);
    for (int64_t i = max(vm->brk - vm->kernel - vm->window, 0); i < done; i++) st->loud[i] = LOUD;
    for (int64_t i = max(vm->brk - vm->kernel, 0); i < rest; i++) st->loud[done + i] = LOUD;
    st->n_heard[ANY] = st->n_heard[WRITE] = 0;
    for (int64_t block = 0; block < active; block += BLOCK) {
        int64_t end = min(block + BLOCK, active);
        uint8_t heard = 0;
        for (int64_t i = block; i < end; i++) heard |= st->loud[i];
        if (heard != QUIET) add_all(st, block, end);
    }
}

static inline int64_t slot_at(const Vm *vm, int64_t offset) {
    offset += vm->window;
    if (offset >= vm->span) offset -= vm->span;
    return vm->base_slot + vm->kernel + offset;
}

static void listen_again(State *st, const Vm *vm, int64_t ppn) {
    if (ppn < vm->kernel || ppn >= vm->kernel + vm->span) return;
    int64_t offset = ppn - vm->kernel - vm->window, slot = vm->base_slot + ppn;
    if (offset < 0) offset += vm->span;
    if (offset >= vm->active) return;
    drop(st, offset, st->loud[offset]);
    st->loud[offset] = loudness(st->page[slot], st->content[slot]);
    add(st, offset, st->loud[offset]);
}

/* Whether the step goes on. Touches that stall do not occur here. */
static int make(State *st, int64_t v, int64_t offset, int is_write, int64_t touch_ns) {
    Vm *vm = &st->vms[v];
    int64_t slot = slot_at(vm, offset), ppn = slot - vm->base_slot;
    int use = st->page[slot] >> USE_SHIFT;
    REQUIRE(use != FREE && st->page[slot] >= 1 << USE_SHIFT);
    int writes = is_write && use == ANON;
    int64_t cost = touch(st, v, ppn, writes, writes ? fresh_word(vm) : 0);
    REQUIRE(cost >= 0);
    vm->stalled = 0;
    vm->left_ns -= touch_ns;
    vm->brk = max(vm->brk, min(ppn + 1, vm->size_slots));
    listen_again(st, vm, ppn);
    listen_again(st, vm, vm->given);
    int64_t now = min(cost, vm->left_ns);
    if (cost > 0) {
        st->lost[v * N_CAUSES + vm->cause] += now;
        st->debts[v * N_CAUSES + vm->cause] += cost - now;
        vm->left_ns -= now;
    }
    return vm->left_ns > 0;
}

static inline double unit_of(uint64_t word) { return (double)(word >> 11) * 0x1p-53; }

static inline int is_write_of(uint64_t word, int64_t writes) {
    return (((word & 0xFFFFFFFFu) * 1000) >> 32) < (uint64_t)writes;
}

static int64_t quiet_before(State *st, double quiet, double draw, int64_t most) {
    if (draw >= quiet) return 0;
    double *powers = st->powers, reached = 1.0;
    powers[0] = quiet;
    int n = 0;
    while (((int64_t)2 << n) <= most && draw < powers[n] * powers[n]) {
        powers[n + 1] = powers[n] * powers[n];
        n += 1;
    }
    int64_t g = 0;
    for (int i = n; i >= 0; i--) {
        if (draw < reached * powers[i]) {
            reached *= powers[i];
            g += (int64_t)1 << i;
        }
    }
    return min(g, most);
}

static int64_t touch_uniform(State *st, int64_t v, int64_t n, int64_t touch_ns, int64_t writes) {
    Vm *vm = &st->vms[v];
    const uint64_t key = stream(st->host, TOUCH, vm->vm);
    const double total = (double)(1000 * vm->active);
    uint64_t draw = 0;
    for (int64_t done = 0;;) {
        int64_t most = min(n - done, vm->left_ns / max(touch_ns, 1)), quiet = most;
        double by_any = (double)(1000 * st->n_heard[ANY]);
        double loud = by_any + (double)(writes * st->n_heard[WRITE]);
        if (loud > 0.0)
            quiet = quiet_before(st, (total - loud) / total, unit_of(mix(key + draw * WEYL)), most);
        done += quiet;
        vm->left_ns -= quiet * touch_ns;
        if (quiet == most) return done;
        double second = unit_of(mix(key + (draw + 1) * WEYL));
        uint64_t third = mix(key + (draw + 2) * WEYL);
        draw += 3;
        /* Lists hardly change in a few touches, so where a later one looks is nearly known. */
        if (st->n_heard[WRITE] > 0) {
            int64_t far = place_of(mix(key + (draw + 3 * NEAR + 2) * WEYL), st->n_heard[WRITE]);
            int64_t near = place_of(mix(key + (draw + 3 * NEXT + 2) * WEYL), st->n_heard[WRITE]);
            FETCH(&st->heard[slot_of(st, WRITE, far)]);
            int64_t offset = st->heard[slot_of(st, WRITE, near)];
            fetch_page(st, slot_at(vm, offset));
            FETCH(&st->heard_at[offset]);
            FETCH(&st->loud[offset]);
        }
        int which = second * loud < by_any ? ANY : WRITE;
        int64_t at = slot_of(st, which, place_of(third, st->n_heard[which]));
        int is_write = which == ANY ? is_write_of(third, writes) : 1;
        int going = make(st, v, st->heard[at], is_write, touch_ns);
        done += 1;
        if (!going) return done;
    }
}

static int64_t octaves_of(int64_t n) {
    int64_t octaves = 0;
    while (((int64_t)2 << octaves) - 1 < n) octaves += 1;
    return octaves;
}

static inline int64_t zipf_rank(uint64_t word, int64_t n, int64_t octaves) {
    int64_t full = (int64_t)1 << octaves, total = octaves * full + n - (full - 1);
    int64_t pick = place_of(word, total), octave = min(pick >> octaves, octaves);
    int64_t low = ((int64_t)1 << octave) - 1, width = min(low + 1, n - low);
    return low + (int64_t)(((word & 0xFFFFFFFFu) * (uint64_t)width) >> 32);
}

static int64_t touch_by_rank(State *st, int64_t v, int64_t n, int64_t touch_ns, int64_t writes) {
    Vm *vm = &st->vms[v];
    const uint64_t key = stream(st->host, TOUCH, vm->vm);
    const int64_t active = vm->active, octaves = octaves_of(active);
    int64_t ring[RING], done = 0;
    uint8_t written[RING];
    for (int64_t i = -FAR; done < n && vm->left_ns >= touch_ns; i++) {
        int64_t ahead = i + FAR;
        uint64_t word = mix(key + (uint64_t)ahead * WEYL);
        int64_t offset = active - 1 - zipf_rank(mix(word + WEYL), active, octaves);
        ring[ahead % RING] = offset;
        written[ahead % RING] = (uint8_t)is_write_of(word, writes);
        FETCH(&st->loud[offset]);
        if (i + NEAR >= 0) {
            int64_t near = (i + NEAR) % RING;
            if (st->loud[ring[near]] + written[near] >= LOUD) {
                fetch_page(st, slot_at(vm, ring[near]));
                FETCH(&st->heard_at[ring[near]]);
            }
        }
        if (i < 0) continue;
        done += 1;
        if (st->loud[ring[i % RING]] + written[i % RING] < LOUD) vm->left_ns -= touch_ns;
        else if (!make(st, v, ring[i % RING], written[i % RING], touch_ns)) break;
    }
    return done;
}

/* touch.touch_window, all of whose data is in memory. Returns how many touches were done. */
int64_t touch_window(const Table *table, int64_t v, int64_t n, int64_t touch_ns, int64_t writes,
                     int64_t locality) {
    State state = state_of(table), *st = &state;
    Vm *vm = &st->vms[v];
    listen(st, vm);
    REQUIRE(vm->stalled == 0);
    int64_t done = locality == UNIFORM ? touch_uniform(st, v, n, touch_ns, writes)
                                       : touch_by_rank(st, v, n, touch_ns, writes);
    vm->sweep = (vm->sweep + done) % vm->active;
    return done;
}

static inline int in_memory(uint8_t byte) {
    return ((byte & STATE) == RESIDENT) | ((byte & STATE) == SHARED);
}

static void finish_period(State *st, int64_t v) {
    Vm *vm = &st->vms[v];
    int64_t touched = 0;
    if (vm->samples == 0) return;
    for (int64_t i = 0; i < vm->samples; i++) {
        uint8_t byte = st->page[vm->base_slot + st->sampled[v * st->n_samples + i]];
        touched += in_memory(byte) && (byte & ACCESSED);
    }
    st->host->minor_faults += touched;
    double fraction = (double)touched / (double)vm->samples;
    if (vm->periods == 0) vm->slow = vm->fast = fraction;
    else {
        vm->slow += SLOW_GAIN * (fraction - vm->slow);
        vm->fast += FAST_GAIN * (fraction - vm->fast);
    }
    vm->periods += 1;
}

static void draw_sample(State *st, int64_t v) {
    Vm *vm = &st->vms[v];
    const uint64_t key = stream(st->host, SAMPLE, vm->vm);
    const int64_t n_in_memory = vm->resident + vm->shared;
    int64_t *sample = st->sampled + v * st->n_samples;
    uint8_t *page = st->page + vm->base_slot;
    vm->samples = n_in_memory > 0 ? st->host->sample_pages : 0;
    for (int64_t i = 0; i < vm->samples; i++) {
        int64_t value = below(key, i, n_in_memory), at = i;
        for (; at > 0 && sample[at - 1] > value; at--) sample[at] = sample[at - 1];
        sample[at] = value;
    }
    int64_t found = 0, before = 0;
    for (int64_t start = 0; found < vm->samples; start += BLOCK) {
        const int64_t end = min(BLOCK, vm->size_slots - start);
        uint8_t inside = 0;
        for (int64_t i = 0; i < end; i++) inside += (uint8_t)in_memory(page[start + i]);
        while (found < vm->samples && sample[found] < before + inside) {
            int64_t rank = sample[found] - before, i = -1;
            while (rank >= 0) rank -= in_memory(page[start + ++i]);
            sample[found++] = start + i;
        }
        before += inside;
    }
    for (int64_t i = 0; i < vm->samples; i++) page[sample[i]] &= ~ACCESSED;
}

/* sample.run. */
void sample_all(const Table *table) {
    State state = state_of(table), *st = &state;
    const int64_t period_ns = st->host->sample_ms * 1000000;
    for (int64_t i = 0; i < st->n_rows && st->order[i] >= 0; i++) {
        Vm *vm = &st->vms[st->order[i]];
        int64_t past_ns = vm->clock_ns - vm->period_start_ns;
        if (past_ns < period_ns) continue;
        finish_period(st, st->order[i]);
        draw_sample(st, st->order[i]);
        vm->period_start_ns = vm->clock_ns - past_ns % period_ns;
    }
}
