%%% The bridge as a sender: a node that pools connections and sends by the public API.
%%%
%%% `--way send' is macula_quic:send/2 on the pooled stream, `--way async' send_async/4. Callers and
%%% peers are dealt to each other in turn: with one peer all callers send to it, with as many
%%% callers as peers each has its own, and one caller sends to all peers round about.
-module(bench_send).

-export([main/0]).

%% send_async/4 never waits, so a caller that sends in bulk looks at what is outstanding, as the
%% README says: so often, and above so much it waits until half of that has gone (the bounds of a
%% peer are 65,536 and 32 MiB; above such bytes `send/2' waits by default, at one peer and in all).
-define(LOOK_BYTES, 1024 * 1024).
-define(LOOK_MESSAGES, 4_096).
-define(MAX_MESSAGES, 32_768).
-define(MAX_BYTES_OF_ONE, 4 * 1024 * 1024).
-define(MAX_BYTES, 16 * 1024 * 1024).
-define(LOOK_MS, 1).

-spec main() -> no_return().
main() ->
    Options = bench_work:options(),
    Messages = bench_work:messages(bench_work:option("size", Options)),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    Address = {{127, 0, 0, 1}, bench_work:option("to", Options)},
    Nodes = lists:seq(1, bench_work:option("peers", Options, 1)),
    Peers = [connect(Pool, Node, Address) || Node <- Nodes],
    Deals = deal(Peers, bench_work:option("callers", Options, 1)),
    MaxBytes = min(?MAX_BYTES, length(Peers) * ?MAX_BYTES_OF_ONE),
    Way = way(maps:get("way", Options), Pool, Address, {length(Deals), MaxBytes}),
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    Begin = erlang:monotonic_time(microsecond),
    Until = Begin + round(list_to_float(maps:get("seconds", Options)) * 1.0e6),
    Self = self(),
    Callers = [
        spawn_link(fun() -> Self ! {self(), Way(Messages, Deal, Until, 0)} end)
     || Deal <- Deals
    ],
    Sent = lists:sum([receive {Caller, Count} -> Count end || Caller <- Callers]),
    Us = erlang:monotonic_time(microsecond) - Begin,
    {ok, #{messages_dropped := Dropped}} = macula_gateway_mesh:get_stats(Pool),
    Dropped =:= #{} orelse error({dropped, Dropped}),
    bench_work:say("sent messages=~b seconds=~.6f", [Sent, Us / 1.0e6]),
    ok = bench_work:expect("quit"),
    halt(0).

connect(Pool, Number, Address) ->
    Node = <<Number:256>>,
    {ok, Stream} = macula_gateway_mesh:get_or_create_connection(Pool, Node, Address),
    {Node, Stream}.

deal(Peers, Callers) when Callers >= length(Peers) ->
    [[lists:nth(1 + N rem length(Peers), Peers)] || N <- lists:seq(0, Callers - 1)];
deal(Peers, Callers) ->
    Numbered = lists:zip(lists:seq(0, length(Peers) - 1), Peers),
    [[Peer || {N, Peer} <- Numbered, N rem Callers =:= C] || C <- lists:seq(0, Callers - 1)].

%% A fun that sends whole rounds until it is time, and counts them.
way("send", _Pool, _Address, _Bounds) ->
    fun send_rounds/4;
way("async", Pool, Address, {Callers, MaxBytes}) ->
    fun(Messages, Peers, Until, Sent) ->
        Most = min(?LOOK_MESSAGES, ?LOOK_BYTES div byte_size(hd(Messages))),
        Every = max(1, min(Most, ?MAX_MESSAGES div Callers)),
        Nodes = [Node || {Node, _} <- Peers],
        async_rounds(Messages, {Nodes, 0}, Until, Sent, {Pool, Address, Every, MaxBytes})
    end.

send_rounds(Messages, Peers, Until, Sent) ->
    case erlang:monotonic_time(microsecond) < Until of
        true -> send_rounds(Messages, send(Messages, Peers, []), Until, Sent + length(Messages));
        false -> Sent
    end.

send([Message | Messages], [{_, Stream}] = Peers, []) ->
    ok = macula_quic:send(Stream, Message),
    send(Messages, Peers, []);
send([Message | Messages], [{_, Stream} = Peer | Peers], Done) ->
    ok = macula_quic:send(Stream, Message),
    send(Messages, Peers, [Peer | Done]);
send([_ | _] = Messages, [], Done) ->
    send(Messages, lists:reverse(Done), []);
send([], Peers, Done) ->
    Peers ++ lists:reverse(Done).

async_rounds(Messages, {Nodes, Count}, Until, Sent, Call) ->
    case erlang:monotonic_time(microsecond) < Until of
        true ->
            Next = async(Messages, Nodes, [], Count, Call),
            async_rounds(Messages, Next, Until, Sent + length(Messages), Call);
        false ->
            Sent
    end.

%% `Count' is how many messages ago the last look was.
async(Messages, Nodes, Done, Every, {Pool, _, Every, MaxBytes} = Call) ->
    true = hold_back(Pool, MaxBytes),
    async(Messages, Nodes, Done, 0, Call);
async([Message | Messages], [Node | Nodes], Done, Count, {Pool, Address, _, _} = Call) ->
    ok = macula_gateway_mesh:send_async(Pool, Node, Address, Message),
    async(Messages, Nodes, [Node | Done], Count + 1, Call);
async([_ | _] = Messages, [], Done, Count, Call) ->
    async(Messages, lists:reverse(Done), [], Count, Call);
async([], Nodes, Done, Count, _Call) ->
    {Nodes ++ lists:reverse(Done), Count}.

hold_back(Pool, MaxBytes) ->
    is_within(Pool, ?MAX_MESSAGES, MaxBytes) orelse
        await(Pool, ?MAX_MESSAGES div 2, MaxBytes div 2).

await(Pool, MaxMessages, MaxBytes) ->
    timer:sleep(?LOOK_MS),
    is_within(Pool, MaxMessages, MaxBytes) orelse await(Pool, MaxMessages, MaxBytes).

is_within(Pool, MaxMessages, MaxBytes) ->
    {ok, #{outstanding_messages := Messages, outstanding_bytes := Bytes}} =
        macula_gateway_mesh:get_stats(Pool),
    Messages =< MaxMessages andalso Bytes =< MaxBytes.
