%%% The messages of a run, the check that each arrived as often as it was sent, whole, and the lines
%%% by which `bench/run' drives a program: what bench/src/work.rs and lines.rs are, in Erlang.
-module(bench_work).

-export([messages/1, new_tally/1, count/2, note_time/1, report/2]).
-export([options/0, option/2, option/3, say/2, expect/1, next/0, identity/0]).

-export_type([tally/0, options/0]).

%% Behind the counters of single messages: all, wrong ones, the times of the first arrival, the end
%% of the warm-up and the last arrival, and what had been counted when the warm-up was over.
-define(ALL, 1).
-define(WRONG, 2).
-define(FIRST, 3).
-define(WARM, 4).
-define(BEFORE, 5).
-define(LAST, 6).

-record(tally, {
    messages :: tuple(),
    %% How often each message of the round has arrived; then what the macros below say.
    counters :: counters:counters_ref()
}).

-opaque tally() :: #tally{}.
-type options() :: #{string() => string()}.

%% As in bench/src/work.rs.
-define(HEAD_BYTES, 16).
-define(HEADER_BYTES, 8).
-define(ROUND_BYTES, 256 * 1024).
-define(ROUND_LEAST, 16).
-define(ROUND_MOST, 1024).
-define(WARM_UP_US, 300_000).
%% The same figure as the Rust receiver's.
-define(STALLED_MS, 5_000).
-define(LOOK_MS, 1).
%% RFC 5480, section 2.1.1.1.
-define(P256, {1, 2, 840, 10045, 3, 1, 7}).

%% @doc One round of messages, all of one size.
-spec messages(pos_integer()) -> [binary()].
messages(Size) ->
    Round = max(?ROUND_LEAST, min(?ROUND_BYTES div Size, ?ROUND_MOST)),
    [message(Number, Size) || Number <- lists:seq(0, Round - 1)].

message(Number, Size) ->
    Fill = << <<(Number + I)>> || I <- lists:seq(0, Size - ?HEAD_BYTES - 1) >>,
    <<1, 1, 0, 0, (Size - ?HEADER_BYTES):32, Number:64, Fill/binary>>.

-spec new_tally(pos_integer()) -> tally().
new_tally(Size) ->
    Messages = list_to_tuple(messages(Size)),
    Counters = counters:new(tuple_size(Messages) + ?LAST, []),
    #tally{messages = Messages, counters = Counters}.

%% @doc Counts one message, if it is one of the round.
-spec count(binary(), tally()) -> ok.
count(<<_:8/binary, Number:64, _/binary>> = Message, #tally{messages = Messages} = Tally) when
    Number < tuple_size(Messages), element(Number + 1, Messages) =:= Message
->
    counters:add(Tally#tally.counters, Number + 1, 1),
    counters:add(Tally#tally.counters, tuple_size(Messages) + ?ALL, 1);
count(_Message, #tally{messages = Messages, counters = Counters}) ->
    counters:add(Counters, tuple_size(Messages) + ?WRONG, 1).

%% @doc Notes that something arrives just now, before it is counted.
-spec note_time(tally()) -> ok.
note_time(#tally{messages = Messages, counters = Counters}) ->
    Now = erlang:monotonic_time(microsecond),
    At = tuple_size(Messages),
    counters:put(Counters, At + ?LAST, Now),
    case {counters:get(Counters, At + ?FIRST), counters:get(Counters, At + ?WARM)} of
        {0, 0} ->
            counters:put(Counters, At + ?FIRST, Now);
        {First, 0} when Now - First >= ?WARM_UP_US ->
            counters:put(Counters, At + ?BEFORE, counters:get(Counters, At + ?ALL)),
            counters:put(Counters, At + ?WARM, Now);
        _ ->
            ok
    end.

%% @doc Answers `await N' once that many messages are there, or none has come for too long.
-spec report(tally(), non_neg_integer()) -> ok.
report(#tally{messages = Messages, counters = Counters} = Tally, Expected) ->
    Count = settle(Tally, Expected, 0, erlang:monotonic_time(millisecond)),
    Times = [counters:get(Counters, I) || I <- lists:seq(1, tuple_size(Messages))],
    Uneven = length([T || T <- Times, T =/= lists:max(Times)]),
    [Wrong, Warm, Before, Last] =
        [counters:get(Counters, tuple_size(Messages) + I) || I <- [?WRONG, ?WARM, ?BEFORE, ?LAST]],
    Rate =
        case Warm of
            0 -> 0.0;
            _ -> (Count - Before) * 1.0e6 / (Last - Warm)
        end,
    say("got messages=~b wrong=~b uneven=~b rate=~.3f", [Count, Wrong, Uneven, Rate]).

settle(#tally{messages = Messages, counters = Counters} = Tally, Expected, Seen, Since) ->
    Now = erlang:monotonic_time(millisecond),
    case counters:get(Counters, tuple_size(Messages) + ?ALL) of
        Count when Count >= Expected ->
            Count;
        Seen when Now - Since > ?STALLED_MS ->
            Seen;
        Count ->
            timer:sleep(?LOOK_MS),
            settle(Tally, Expected, Count, case Count of Seen -> Since; _ -> Now end)
    end.

%% @doc The command line behind `-extra': `--key value' pairs.
-spec options() -> options().
options() ->
    %% Standard output is the driver's.
    ok = logger:set_primary_config(level, error),
    options(init:get_plain_arguments(), #{}).

options([[$-, $- | Key], Value | Rest], Options) -> options(Rest, Options#{Key => Value});
options([], Options) -> Options.

-spec option(string(), options()) -> integer().
option(Key, Options) -> list_to_integer(maps:get(Key, Options)).

-spec option(string(), options(), integer()) -> integer().
option(Key, Options, _Default) when is_map_key(Key, Options) -> option(Key, Options);
option(_Key, _Options, Default) -> Default.

-spec say(io:format(), [term()]) -> ok.
say(Format, Args) -> io:format(Format ++ "~n", Args).

%% @doc The next line of the driver; `eof' once it is gone.
-spec next() -> string() | eof.
next() ->
    case io:get_line("") of
        Line when is_list(Line) -> string:trim(Line);
        _ -> eof
    end.

-spec expect(string()) -> ok.
expect(Line) ->
    Line = next(),
    ok.

%% @doc A certificate and its key, both DER, made for this run.
-spec identity() -> {binary(), {atom(), binary()}}.
identity() ->
    Key = [{digest, sha256}, {key, {namedCurve, ?P256}}],
    Chain = #{root => Key, intermediates => [], peer => Key},
    #{server_config := Config} =
        public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    {cert, Cert} = lists:keyfind(cert, 1, Config),
    {key, DerKey} = lists:keyfind(key, 1, Config),
    {Cert, DerKey}.
