"""Lifetimes of gathered arrays, on hand-written modules."""

from jaxnn import cost

HLO = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %g1 = f32[64]{0} all-gather(f32[8]{0} %x), dimensions={0}
  %b1 = f32[8,8]{1,0} bitcast(f32[64]{0} %g1)
  %g2 = f32[32]{0} all-gather(f32[8]{0} %x), dimensions={0}
  %u1 = f32[8]{0} fusion(f32[8,8]{1,0} %b1), kind=kLoop, calls=%f
  %u2 = f32[8]{0} fusion(f32[32]{0} %g2), kind=kLoop, calls=%f
  ROOT %t = (s32[], f32[8]) tuple(s32[] %i, f32[8]{0} %u2)
}

%cond (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]) parameter(0)
  ROOT %c = pred[] constant(false)
}

%f (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}

ENTRY %main (w: f32[8], s: s32[]) -> f32[16] {
  %w = f32[8]{0} parameter(0)
  %s = s32[] parameter(1)
  %g0 = f32[16]{0} all-gather(f32[8]{0} %w), dimensions={0}
  %t0 = (s32[], f32[8]) tuple(s32[] %s, f32[8]{0} %w)
  %loop = (s32[], f32[8]) while((s32[], f32[8]) %t0), condition=%cond, body=%body
  %late = f32[128]{0} all-gather(f32[8]{0} %w), dimensions={0}
  ROOT %r = f32[16]{0} copy(f32[16]{0} %g0)
}
"""


def test_what_lives_in_a_loop_is_added_to_what_lives_around_it():
    # At its worst the loop holds both of its own, 64 + 32 elements, while 16 wait outside; the late one comes after.
    late = 4 * (128 + 16)
    assert cost.gathered_alive(HLO) == late
    assert cost.gathered_alive(HLO.replace("f32[128]", "f32[16]")) == 4 * (64 + 32 + 16)


def test_a_result_that_is_read_at_once_is_let_go():
    early = HLO.replace("f32[128]", "f32[16]").replace("fusion(f32[8,8]{1,0} %b1)", "fusion(f32[8]{0} %x)")
    assert cost.gathered_alive(early) == 4 * (64 + 16)  # %g1 is not alive with %g2 any more


def test_nothing_gathered_is_nothing():
    assert cost.gathered_alive(HLO.replace("all-gather", "all-to-all")) == 0
