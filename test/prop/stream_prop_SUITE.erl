%%% Streams against their model, by random sequences of calls. PROP_RUNS sets how many.
-module(stream_prop_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([streams_behave_as_their_model/1]).

-define(RUNS, "100").

suite() -> [{timetrap, {minutes, 5}}].

all() -> [streams_behave_as_their_model].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

streams_behave_as_their_model(_Config) ->
    %% Data that is lost or turned around by a hand-over in the wrong moment is noticed by nobody.
    Runs = list_to_integer(os:getenv("PROP_RUNS", ?RUNS)),
    _ = ct:timetrap({seconds, 120 + 3 * Runs}),
    ok = quic_ct:begin_test(),
    Property = stream_model:prop_streams_behave_as_their_model(),
    Output = fun(Format, Arguments) -> ct:log(Format, Arguments) end,
    Options = [{numtests, Runs}, {max_size, 40}, {max_shrinks, 60}, {on_output, Output}],
    %% The log has the counterexample.
    true = proper:quickcheck(Property, Options).
