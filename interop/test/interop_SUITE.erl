%%% Peers on QUIC stacks that are not ours, dialled by us and dialling us, on real sockets.
%%%
%%% Run by interop/run.sh: MACULA_INTEROP_PEERS names the peers, MACULA_INTEROP_AIOQUIC and so on
%%% hold their command lines, and MACULA_INTEROP_MESSAGES how many messages or streams "many" is.
-module(interop_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(LOOPBACK, {127, 0, 0, 1}).
-define(SIZE, 248).
-define(TIMEOUT, 60_000).
-define(CALLERS, 16).
%% Flags of async_shutdown_stream/3.
-define(FINISH, 1).
-define(ABORT_SEND, 2).
-define(ABORT_RECEIVE, 4).
%% RFC 9000, section 14.1: what every path carries.
-define(LEAST_MTU, 1200).

suite() -> [{timetrap, {minutes, 4}}].

all() -> [{group, Peer} || Peer <- peers()].

groups() ->
    [{Peer, [], parts(Peer)} || Peer <- [aioquic, msquic, s2n, quiche]].

parts(Peer) ->
    [{Group, [], Cases ++ offered(Group, Peer)} || {Group, Cases} <- groups_of_each()].

groups_of_each() ->
    [{we_dial, both()}, {the_peer_dials, both()}, {pool, [the_pool_gives_each_message_a_stream]}].

both() ->
    [
        what_is_sent_comes_back_to_the_end,
        many_messages_on_one_stream_arrive_whole_both_ways,
        many_streams_that_we_open,
        many_streams_that_the_peer_opens,
        frames_cut_at_every_byte_arrive_whole,
        frames_joined_and_cut_arrive_whole,
        payloads_of_many_packets_arrive_both_ways,
        our_reset_and_our_stop_arrive_with_their_codes,
        the_peers_reset_and_its_stop_arrive_with_their_codes,
        our_close_arrives_with_its_code,
        the_peers_close_arrives_with_its_code,
        silence_ends_the_connection_at_both_ends
    ].

offered(Group, Peer) ->
    [
        Case
     || {Case, Groups, Peers} <- offered(), lists:member(Group, Groups), lists:member(Peer, Peers)
    ].

%% What not every stack lets its users ask for, or what nodes in the field do with theirs.
offered() ->
    [
        {the_peer_updates_its_keys, [we_dial, the_peer_dials], [aioquic, msquic]},
        {the_peer_moves_to_another_address, [the_peer_dials], [aioquic, msquic, quiche]},
        {a_client_behind_a_forgetful_nat_goes_on, [we_dial, the_peer_dials], peers()},
        {a_narrow_path_carries_everything, [we_dial, the_peer_dials], peers()},
        {a_receiver_that_takes_chunks_for_messages_loses_none, [pool], [aioquic, msquic, quiche]}
    ].

peers() ->
    %% Without the variable this fails: no peers must not pass for success.
    [_ | _] = Names = string:lexemes(os:getenv("MACULA_INTEROP_PEERS", ""), " "),
    [list_to_existing_atom(Name) || Name <- Names].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(macula_gateway_mesh),
    Dir = proplists:get_value(priv_dir, Config),
    Chains = #{server_chain => chain(), client_chain => chain()},
    #{server_config := Server, client_config := Client} = public_key:pkix_test_data(Chains),
    [Root | _] = proplists:get_value(cacerts, Client),
    Cert = proplists:get_value(cert, Server),
    {KeyType, KeyDer} = proplists:get_value(key, Server),
    CertFile = filename:join(Dir, "cert.pem"),
    KeyFile = filename:join(Dir, "key.pem"),
    ok = write_pem(CertFile, 'Certificate', Cert),
    ok = write_pem(KeyFile, KeyType, KeyDer),
    CaFile = filename:join(Dir, "ca.pem"),
    ok = write_pem(CaFile, 'Certificate', Root),
    [{certfile, CertFile}, {keyfile, KeyFile}, {cafile, CaFile} | Config].

end_per_suite(_Config) -> ok.

init_per_group(Group, Config) ->
    case lists:member(Group, peers()) of
        true ->
            "" ++ _ = CommandLine = os:getenv(variable(Group)),
            [{stack, Group}, {program, string:lexemes(CommandLine, "\n")} | Config];
        false ->
            [{direction, Group} | Config]
    end.

end_per_group(_Group, _Config) -> ok.

init_per_testcase(Case, Config) ->
    say("~s, ~s: ~s ... ", [proplists:get_value(K, Config) || K <- [stack, direction]] ++ [Case]),
    [{began, erlang:monotonic_time(millisecond)} | Config].

end_per_testcase(_Case, Config) ->
    %% That of a case that has failed.
    _ = [macula_gateway_mesh:stop(Pool) || Pool <- [whereis(macula_gateway_mesh)], is_pid(Pool)],
    Took = erlang:monotonic_time(millisecond) - proplists:get_value(began, Config),
    Outcome =
        case proplists:get_value(tc_status, Config) of
            ok -> "ok";
            _ -> "FAILED"
        end,
    say("~s, ~.1f s~n", [Outcome, Took / 1000]).

%%% Whoever has dialled

%% The least that two stacks must agree on: handshake, a message and FIN, each way.
what_is_sent_comes_back_to_the_end(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    Frame = mesh_peer:frame(1, ?SIZE),
    ok = macula_quic:send(Stream, Frame),
    ok = macula_quic:async_shutdown_stream(Stream, ?FINISH, 0),
    ?assertEqual({ok, Frame}, macula_quic:recv(Stream, ?TIMEOUT)),
    ?assertEqual({error, closed}, macula_quic:recv(Stream, ?TIMEOUT)),
    ?assertMatch(#{messages := 1, corrupt := 0}, interop_peer:wait(Peer, finished, 1)),
    interop_peer:stop(Peer).

%% QUIC joins and cuts what shares a stream; whoever counts messages must not notice.
many_messages_on_one_stream_arrive_whole_both_ways(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = macula_quic:setopt(Stream, active, true),
    Frames = [mesh_peer:frame(Index, ?SIZE) || Index <- lists:seq(0, many() - 1)],
    [ok = macula_quic:send(Stream, Frame) || Frame <- Frames],
    [?assertEqual(Frame, next_data(Stream)) || Frame <- Frames],
    ok = macula_quic:async_shutdown_stream(Stream, ?FINISH, 0),
    all_arrived(interop_peer:wait(Peer, finished, 1)),
    interop_peer:stop(Peer).

%% Credit must come back from the peer for ever.
many_streams_that_we_open(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    [ok = one_message(Connection, Index) || Index <- lists:seq(0, many() - 1)],
    Stats = #{streams := Streams} = interop_peer:wait(Peer, finished, many()),
    all_arrived(Stats),
    ?assertEqual(many(), Streams),
    interop_peer:stop(Peer).

one_message(Connection, Index) ->
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = macula_quic:send(Stream, mesh_peer:frame(Index, ?SIZE)),
    macula_quic:close_stream(Stream).

%% And we must give it back for ever.
many_streams_that_the_peer_opens(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, _} = macula_quic:async_accept_stream(Connection, []),
    ok = interop_peer:ask(Peer, io_lib:format("streams ~b ~b", [many(), ?SIZE])),
    Frames = receive_streams(Connection, many()),
    ?assertEqual([mesh_peer:frame(Index, ?SIZE) || Index <- lists:seq(0, many() - 1)], Frames),
    ?assertEqual({sent, many()}, interop_peer:await(Peer, ?TIMEOUT)),
    interop_peer:stop(Peer).

%% Old senders cut frames anywhere, and v0.20.5 nodes lost messages over it.
frames_cut_at_every_byte_arrive_whole(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, _} = macula_quic:async_accept_stream(Connection, []),
    Size = 24,
    %% Two frames a stream, cut once, at each byte but the last.
    Count = 2 * byte_size(mesh_peer:frame(0, Size)) - 1,
    ok = interop_peer:ask(Peer, io_lib:format("split ~b", [Size])),
    Frames = receive_streams(Connection, Count),
    ?assertEqual([mesh_peer:frame(I, Size) || I <- lists:seq(0, 2 * Count - 1)], Frames),
    ?assertEqual({sent, 2 * Count}, interop_peer:await(Peer, ?TIMEOUT)),
    interop_peer:stop(Peer).

%% The same for many frames in writes of a length that is none of theirs, down to one byte.
frames_joined_and_cut_arrive_whole(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, _} = macula_quic:async_accept_stream(Connection, []),
    Cuts = [{20, 24, 1}, {500, 100, 7}, {2_000, ?SIZE, 1_000}, {many(), ?SIZE, 65_536}],
    [joined_and_cut(Connection, Peer, Cut) || Cut <- Cuts],
    interop_peer:stop(Peer).

joined_and_cut(Connection, Peer, {Count, Size, Length}) ->
    ok = interop_peer:ask(Peer, io_lib:format("messages ~b ~b ~b", [Count, Size, Length])),
    Frames = receive_streams(Connection, 1),
    ?assertEqual([mesh_peer:frame(Index, Size) || Index <- lists:seq(0, Count - 1)], Frames),
    ?assertEqual({sent, Count}, interop_peer:await(Peer, ?TIMEOUT)).

payloads_of_many_packets_arrive_both_ways(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    Sizes = [?LEAST_MTU, 1_452, 9_000, 65_535, 1_000_000],
    Frames = [mesh_peer:frame(Size, Size) || Size <- Sizes],
    [echo(Stream, Frame) || Frame <- Frames],
    ?assertMatch(#{messages := 5, corrupt := 0}, interop_peer:stats(Peer)),
    interop_peer:stop(Peer).

our_reset_and_our_stop_arrive_with_their_codes(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = macula_quic:send(Stream, mesh_peer:frame(1, ?SIZE)),
    _ = interop_peer:wait(Peer, messages, 1),
    ok = macula_quic:async_shutdown_stream(Stream, ?ABORT_RECEIVE, 44),
    ?assertMatch(#{stop_codes := #{44 := 1}}, interop_peer:wait(Peer, stops, 1)),
    ok = macula_quic:async_shutdown_stream(Stream, ?ABORT_SEND, 33),
    ?assertMatch(#{reset_codes := #{33 := 1}}, interop_peer:wait(Peer, resets, 1)),
    interop_peer:stop(Peer).

the_peers_reset_and_its_stop_arrive_with_their_codes(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, _} = macula_quic:async_accept_stream(Connection, []),
    ok = interop_peer:command(Peer, io_lib:format("open ~b", [?SIZE])),
    Stream = next(new_stream),
    ok = macula_quic:setopt(Stream, active, true),
    ?assertEqual(mesh_peer:frame(0, ?SIZE), next_data(Stream)),
    ok = interop_peer:command(Peer, "stop 66"),
    ?assertEqual(66, next_of(peer_receive_aborted, Stream)),
    ok = interop_peer:command(Peer, "reset 55"),
    ?assertEqual(55, next_of(peer_send_aborted, Stream)),
    interop_peer:stop(Peer).

our_close_arrives_with_its_code(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    %% A client whose handshake is not confirmed yet says it in a Handshake packet, too (RFC 9000,
    %% section 10.2.3). When the server has confirmed it, quiche drops that one with all that
    %% follows in the datagram.
    echo(Stream, mesh_peer:frame(1, ?SIZE)),
    ok = macula_quic:async_shutdown_connection(Connection, 0, 77),
    ?assertMatch(#{close_codes := #{77 := 1}}, interop_peer:wait(Peer, closes, 1)),
    interop_peer:stop(Peer).

the_peers_close_arrives_with_its_code(Config) ->
    {Connection, Peer} = pair(Config, "count"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = interop_peer:command(Peer, "close 88"),
    ?assertEqual(88, next_of(shutdown, Connection)),
    _ = next_of(closed, Connection),
    ?assertEqual({error, {closed_by_peer, 88}}, macula_quic:recv(Stream, ?TIMEOUT)),
    interop_peer:stop(Peer).

%% Whichever end sets the shorter time, it holds for both.
silence_ends_the_connection_at_both_ends(Config) ->
    Silent = [{keep_alive_interval_ms, 0}],
    [
        begin
            {Connection, Peer} = pair(Config, "count", Args, Silent ++ Options),
            _ = next_of(closed, Connection),
            ?assertMatch(#{closed_by_timeout := 1}, interop_peer:wait(Peer, closed_by_timeout, 1)),
            interop_peer:stop(Peer)
        end
     || {Args, Options} <- [
            {["--idle-timeout-ms", "1000"], []},
            {[], [{idle_timeout_ms, 1_000}]}
        ]
    ].

%%% What lies between the two

%% The client stays where it is, but its datagrams come from another port after a while. Whichever
%% end is the server must go on with it there (RFC 9000, section 9.3).
a_client_behind_a_forgetful_nat_goes_on(Config) ->
    {Connection, Peer, Nat} = pair_by(Config, fun interop_nat:start/1),
    goes_on_through_moves(Connection, Peer, fun() ->
        Port = interop_nat:forget(Nat),
        %% A server learns of it by what the client sends: when that is the peer, a new stream,
        %% since not every stack lets its users ping.
        ok = interop_peer:command(Peer, io_lib:format("open ~b", [?SIZE])),
        Port
    end).

%% A path that carries the least that the peer sends, for most the least that QUIC asks for (RFC
%% 9000, section 14.1), and not a byte more: searches for more come to nothing, and everything
%% arrives.
a_narrow_path_carries_everything(Config) ->
    Width = least_of(proplists:get_value(stack, Config)),
    {Connection, Peer, Nat} = pair_by(Config, fun(Port) -> interop_nat:start(Port, Width) end),
    {ok, Stream} = macula_quic:open_stream(Connection),
    [echo(Stream, mesh_peer:frame(Size, Size)) || Size <- [?LEAST_MTU, 9_000, 300_000]],
    %% We search, at least: were nothing too long, the path would not have been narrow.
    Dropped = interop_nat:dropped(Nat),
    ct:pal("too long for the path: ~p", [Dropped]),
    ?assert(Dropped > 0),
    interop_peer:stop(Peer).

%% MsQuic's is QUIC_DPLPMTUD_MIN_MTU, less the headers of IPv4 and UDP.
least_of(msquic) -> 1_248 - 20 - 8;
least_of(_Stack) -> ?LEAST_MTU.

%%% What some stacks offer

the_peer_updates_its_keys(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    {ok, Stream} = macula_quic:open_stream(Connection),
    [
        begin
            echo(Stream, mesh_peer:frame(Index, 5_000)),
            ok = interop_peer:command(Peer, "key_update")
        end
     || Index <- lists:seq(1, 20)
    ],
    echo(Stream, mesh_peer:frame(0, ?SIZE)),
    interop_peer:stop(Peer).

%% A client behind a NAT that forgets, or one that changes networks.
the_peer_moves_to_another_address(Config) ->
    {Connection, Peer} = pair(Config, "echo"),
    goes_on_through_moves(Connection, Peer, fun() ->
        {port, Port} = interop_peer:command(Peer, "rebind"),
        %% A server learns of it by what the client sends.
        ok = interop_peer:command(Peer, "ping"),
        Port
    end).

%%% Our pool as the sender

the_pool_gives_each_message_a_stream(Config) ->
    Peer = peer(Config, ["--mode", "count"]),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    Address = {?LOOPBACK, interop_peer:port(Peer)},
    [
        ok = macula_gateway_mesh:send_async(Pool, <<"n">>, Address, mesh_peer:frame(I, ?SIZE))
     || I <- lists:seq(0, many() - 1)
    ],
    Stats = #{streams := Streams} = interop_peer:wait(Peer, finished, many()),
    all_arrived(Stats),
    ?assertEqual(many(), Streams),
    %% Loopback carries more, and the search for how much is over by now.
    {ok, #{mtu_bytes := Mtu}} = macula_gateway_mesh:get_connection_info(Pool, <<"n">>),
    ?assert(Mtu > ?LEAST_MTU),
    {ok, #{messages_dropped := Dropped, renewals := Renewals}} =
        macula_gateway_mesh:get_stats(Pool),
    ?assertEqual({#{}, 0}, {Dropped, Renewals}),
    ok = macula_gateway_mesh:stop(Pool),
    interop_peer:stop(Peer).

%% The habit of v0.20.5 nodes: what follows a message in its chunk is dropped.
a_receiver_that_takes_chunks_for_messages_loses_none(Config) ->
    Peer = peer(Config, ["--mode", "chunks"]),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    Address = {?LOOPBACK, interop_peer:port(Peer)},
    {ok, Stream} = macula_gateway_mesh:get_or_create_connection(Pool, <<"n">>, Address),
    Share = many() div ?CALLERS,
    Callers = [
        spawn_monitor(fun() ->
            [
                ok = macula_quic:send(Stream, mesh_peer:frame(Caller * Share + I, ?SIZE))
             || I <- lists:seq(0, Share - 1)
            ]
        end)
     || Caller <- lists:seq(0, ?CALLERS - 1)
    ],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        after ?TIMEOUT -> error(caller_is_stuck)
        end
     || {Pid, Monitor} <- Callers
    ],
    Stats = interop_peer:wait(Peer, finished, Share * ?CALLERS),
    ?assertMatch(#{corrupt := 0, duplicates := 0}, Stats),
    ?assertEqual(Share * ?CALLERS, maps:get(distinct, Stats)),
    ok = macula_gateway_mesh:stop(Pool),
    interop_peer:stop(Peer).

%%% Internal

%% `Move()' makes datagrams come from another port, which it returns.
goes_on_through_moves(Connection, Peer, Move) ->
    {ok, Stream} = macula_quic:open_stream(Connection),
    Ports = [
        begin
            echo(Stream, mesh_peer:frame(Index, 5_000)),
            Move()
        end
     || Index <- lists:seq(1, 3)
    ],
    ?assertEqual(3, length(lists:usort(Ports))),
    echo(Stream, mesh_peer:frame(0, 100_000)),
    interop_peer:stop(Peer).

%% The same by way of what `Start(Port)' puts before the listener.
pair_by(Config, Start) ->
    Peer = peer(Config, ["--mode", "echo"]),
    {{ok, Connection}, Nat} = meet_by(proplists:get_value(direction, Config), Peer, Config, Start),
    _ = interop_peer:wait(Peer, connections_opened, 1),
    {Connection, Peer, Nat}.

meet_by(we_dial, Peer, _Config, Start) ->
    Nat = Start(interop_peer:port(Peer)),
    {macula_quic:connect(?LOOPBACK, interop_nat:port(Nat), [], ?TIMEOUT), Nat};
meet_by(the_peer_dials, Peer, Config, Start) ->
    {Listener, Port} = listener(Config, []),
    Nat = Start(Port),
    {accept_from(Peer, Listener, interop_nat:port(Nat)), Nat}.

%% A connection between us and a fresh peer, dialled as the group says.
pair(Config, Mode) ->
    pair(Config, Mode, [], []).

pair(Config, Mode, Args, Options) ->
    Peer = peer(Config, ["--mode", Mode | Args]),
    {ok, Connection} =
        case proplists:get_value(direction, Config) of
            we_dial -> macula_quic:connect(?LOOPBACK, interop_peer:port(Peer), Options, ?TIMEOUT);
            the_peer_dials -> dialled_by(Peer, Config, Options)
        end,
    %% Who dials knows first that it has worked.
    _ = interop_peer:wait(Peer, connections_opened, 1),
    {Connection, Peer}.

dialled_by(Peer, Config, Options) ->
    {Listener, Port} = listener(Config, Options),
    accept_from(Peer, Listener, Port).

listener(Config, Options) ->
    Identity = [lists:keyfind(Key, 1, Config) || Key <- [certfile, keyfile]],
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, Identity ++ Options),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    {Listener, Port}.

accept_from(Peer, Listener, Port) ->
    ok = interop_peer:ask(Peer, io_lib:format("connect ~b", [Port])),
    Accepted = macula_quic:accept(Listener, ?TIMEOUT),
    connected = interop_peer:await(Peer, ?TIMEOUT),
    Accepted.

peer(Config, Args) ->
    Files = [{"--cert", certfile}, {"--key", keyfile}, {"--ca", cafile}],
    Ours = lists:append([[Name, proplists:get_value(Key, Config)] || {Name, Key} <- Files]),
    interop_peer:start(proplists:get_value(program, Config), Ours ++ Args).

%% All frames of the next `Count' streams, in the order of the streams' opening.
receive_streams(Connection, Count) ->
    receive_streams(Connection, Count, Count, #{}).

receive_streams(_Connection, _Count, 0, Received) ->
    Streams = lists:sort(maps:values(Received)),
    lists:append([lists:reverse(Frames) || {_, Frames} <- Streams]);
receive_streams(Connection, Count, Left, Received) ->
    receive
        {quic, new_stream, Stream, #{conn := Connection}} ->
            {ok, _} = macula_quic:async_accept_stream(Connection, []),
            ok = macula_quic:setopt(Stream, active, true),
            New = #{Stream => {map_size(Received), []}},
            receive_streams(Connection, Count, Left, maps:merge(Received, New));
        {quic, Frame, Stream, #{len := Length}} when byte_size(Frame) =:= Length ->
            Add = fun({Number, Frames}) -> {Number, [Frame | Frames]} end,
            receive_streams(Connection, Count, Left, maps:update_with(Stream, Add, Received));
        {quic, peer_send_shutdown, Stream, _} ->
            ok = macula_quic:close_stream(Stream),
            receive_streams(Connection, Count, Left - 1, Received);
        {quic, What, _, _} = Message when What =:= closed; What =:= peer_send_aborted ->
            error({unexpected, Message})
    after ?TIMEOUT -> error({streams_missing, Left, of_all, Count})
    end.

echo(Stream, Frame) ->
    ok = macula_quic:send(Stream, Frame),
    ?assertEqual({ok, Frame}, macula_quic:recv(Stream, ?TIMEOUT)).

all_arrived(#{messages := Messages, distinct := Distinct, corrupt := Corrupt}) ->
    ?assertEqual({many(), many(), 0}, {Messages, Distinct, Corrupt}).

next_data(Stream) ->
    receive
        {quic, Data, Stream, _} when is_binary(Data) -> Data
    after ?TIMEOUT -> error(no_data)
    end.

next(What) ->
    receive
        {quic, What, Handle, _} -> Handle
    after ?TIMEOUT -> error({never_came, What})
    end.

next_of(What, Handle) ->
    receive
        {quic, What, Handle, Detail} -> Detail
    after ?TIMEOUT -> error({never_came, What})
    end.

many() -> list_to_integer(os:getenv("MACULA_INTEROP_MESSAGES", "10000")).

variable(Peer) -> "MACULA_INTEROP_" ++ string:uppercase(atom_to_list(Peer)).

%% What all stacks take: MsQuic's TLS library refuses signatures over SHA-1, and aioquic's those of
%% elliptic curves as OTP encodes them.
chain() ->
    Kind = [{key, {rsa, 2048, 65537}}, {digest, sha256}],
    %% subjectAltName (RFC 5280, section 4.2.1.6).
    Names = {'Extension', {2, 5, 29, 17}, false, [{dNSName, "localhost"}]},
    #{root => Kind, peer => [{extensions, [Names]} | Kind], intermediates => []}.

%% aioquic takes an empty line at the end for another certificate.
write_pem(File, Type, Der) ->
    Pem = public_key:pem_encode([{Type, Der, not_encrypted}]),
    file:write_file(File, [string:trim(Pem), $\n]).

say(Format, Args) -> io:format(user, Format, Args).
