%%% What a node could use instead: OTP's `ssl' over TCP with `{packet, 4}', one connection per peer.
%%% A process per connection receives, with `{active, N}'.
-module(bench_tcp).

-export([send/0, 'receive'/0, connect/1]).

-define(ACTIVE, 100).
-define(TLS, [{versions, ['tlsv1.3']}, {verify, verify_none}]).
-define(TCP, [binary, {packet, 4}, {nodelay, true}]).

-spec send() -> no_return().
send() ->
    {ok, _} = application:ensure_all_started(ssl),
    Options = bench_work:options(),
    Messages = bench_work:messages(bench_work:option("size", Options)),
    Port = bench_work:option("to", Options),
    Peers = [connect(Port) || _ <- lists:seq(1, bench_work:option("peers", Options, 1))],
    Callers = bench_work:option("callers", Options, 1),
    Deals = [lists:nth(1 + N rem length(Peers), Peers) || N <- lists:seq(0, Callers - 1)],
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    Begin = erlang:monotonic_time(microsecond),
    Until = Begin + round(list_to_float(maps:get("seconds", Options)) * 1.0e6),
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), rounds(Messages, S, Until, 0)} end) || S <- Deals],
    Sent = lists:sum([receive {Pid, Count} -> Count end || Pid <- Pids]),
    Us = erlang:monotonic_time(microsecond) - Begin,
    bench_work:say("sent messages=~b seconds=~.6f", [Sent, Us / 1.0e6]),
    ok = bench_work:expect("quit"),
    halt(0).

-spec connect(inet:port_number()) -> ssl:sslsocket().
connect(Port) ->
    {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, ?TCP ++ [{active, false} | ?TLS]),
    Socket.

rounds(Messages, Socket, Until, Sent) ->
    case erlang:monotonic_time(microsecond) < Until of
        true ->
            ok = lists:foreach(fun(Message) -> ok = ssl:send(Socket, Message) end, Messages),
            rounds(Messages, Socket, Until, Sent + length(Messages));
        false ->
            Sent
    end.

-spec 'receive'() -> no_return().
'receive'() ->
    {ok, _} = application:ensure_all_started(ssl),
    Options = bench_work:options(),
    Tally = bench_work:new_tally(bench_work:option("size", Options)),
    {Cert, Key} = bench_work:identity(),
    Listening = ?TCP ++ [{ip, {127, 0, 0, 1}}, {backlog, 128}, {active, false} | ?TLS],
    {ok, Listener} = ssl:listen(0, [{cert, Cert}, {key, Key} | Listening]),
    {ok, {_, Port}} = ssl:sockname(Listener),
    _ = spawn_link(fun() -> accept(Listener, Tally) end),
    bench_work:say("ready port=~b", [Port]),
    answer(Tally).

answer(Tally) ->
    case bench_work:next() of
        "await " ++ Count ->
            ok = bench_work:report(Tally, list_to_integer(Count)),
            answer(Tally);
        _QuitOrEof ->
            halt(0)
    end.

accept(Listener, Tally) ->
    {ok, Begun} = ssl:transport_accept(Listener),
    Pid = spawn_link(fun() ->
        receive
            {serve, Socket} ->
                ok = ssl:setopts(Socket, [{active, ?ACTIVE}]),
                serve(Socket, Tally)
        end
    end),
    {ok, Socket} = ssl:handshake(Begun),
    ok = ssl:controlling_process(Socket, Pid),
    Pid ! {serve, Socket},
    accept(Listener, Tally).

serve(Socket, Tally) ->
    receive
        {ssl, Socket, Data} ->
            ok = bench_work:note_time(Tally),
            ok = bench_work:count(Data, Tally),
            serve(Socket, Tally);
        {ssl_passive, Socket} ->
            ok = ssl:setopts(Socket, [{active, ?ACTIVE}]),
            serve(Socket, Tally);
        {ssl_closed, Socket} ->
            ok
    end.
